"""The doctor's checks of cores, threads, power and clock: what a number depends on even when the machine is idle."""

from __future__ import annotations

import math
from collections.abc import Iterator

from vitgs.measure import machine
from vitgs.measure.host import Finding, Host

CPUS = "sys/devices/system/cpu"
# Clocks that a process reads without asking the kernel or an emulated device.
GOOD_CLOCKS = ("tsc", "kvm-clock", "arch_sys_counter", "hyperv_clocksource_tsc_page", "timebase", "tod")
COARSE_NS = 50_000  # a block of the timing is the longer of 5 ms and 100 steps of the clock
STEPS, LONGEST_LOOK = 5, 200_000
VIRTUAL = ("kvm", "qemu", "vmware", "virtualbox", "virtual machine", "bochs", "xen", "parallels")


def governor(host: Host) -> Finding:
    """Who sets the cores' frequency."""
    found = sorted({name for path in host.glob(f"{CPUS}/cpufreq/policy*/scaling_governor") if (name := host.text(path))})
    if not found:
        return Finding(check="frequency", level="unknown", seen="this system doesn't show who sets the cores' frequency")
    seen = "governor " + ", ".join(found)
    if found == ["performance"]:
        return Finding(check="frequency", level="ok", seen=seen)
    why = "the frequency follows the load, so short and first calls run on a slower clock"
    return Finding(check="frequency", level="warn", seen=seen, why=why, remedy="sudo cpupower frequency-set -g performance")


def boost(host: Host) -> Finding:
    """Whether cores may run above their rated clock."""
    stopped, allowed = host.text(f"{CPUS}/intel_pstate/no_turbo"), host.text(f"{CPUS}/cpufreq/boost")
    if stopped not in ("0", "1") and allowed not in ("0", "1"):
        return Finding(check="boost", level="unknown", seen="this system doesn't show it")
    if stopped == "1" or (not stopped and allowed == "0"):
        return Finding(check="boost", level="ok", seen="off")
    why = "the clock depends on heat and on how many cores work: times move by some percent, ratios to the anchor of the same rounds hardly do"
    switch = f"echo 1 | sudo tee /{CPUS}/intel_pstate/no_turbo" if stopped else f"echo 0 | sudo tee /{CPUS}/cpufreq/boost"
    return Finding(check="boost", level="warn", seen="on", why=why, remedy=f"compare ratios to the anchor, or {switch}")


def quota(host: Host) -> Finding:
    """Whether a container's limit leaves time for all threads."""
    cores, wanted = machine.cpu_quota_cores(host.root), _threads_set(host) or len(host.cores)
    if cores is None:
        return Finding(check="CPU limit", level="ok", seen=f"none on {len(host.cores)} cores")
    seen = f"{cores:g} cores' worth of time for {wanted} threads"
    if cores < 1:
        why = "the kernel stops the process for a part of every tenth of a second, in the middle of what is timed"
        return Finding(check="CPU limit", level="unfit", seen=seen, why=why, remedy="give the container at least one whole core (--cpus 1 or more)")
    if cores < wanted:
        why = "the threads use the time up before the period ends, and then all of them stand still"
        return Finding(check="CPU limit", level="warn", seen=seen, why=why, remedy=f"export OMP_NUM_THREADS={math.floor(cores)}")
    return Finding(check="CPU limit", level="ok", seen=seen)


def siblings(host: Host) -> Finding:
    """Whether two of our threads, or one of ours and a stranger's, share one core's units."""
    groups = _groups(host)
    if not groups:
        return Finding(check="hyper-threads", level="unknown", seen="this system doesn't show which threads share a core")
    widest, strange = max(map(len, groups)), sum(bool(group - host.cores) for group in groups)
    if widest == 1:
        return Finding(check="hyper-threads", level="ok", seen=f"{len(groups)} cores of one thread")
    seen = f"{len(host.cores)} threads on {len(groups)} cores"
    if strange:
        why = "their other threads are outside this process's share: others' work takes half of such a core"
        remedy = "give whole cores to the container or job, both threads of each"
        return Finding(check="hyper-threads", level="warn", seen=f"{seen}, {strange} shared with others", why=why, remedy=remedy)
    if (_threads_set(host) or 0) > len(groups):
        why = "two threads of one product on one core take turns at its units: slower and more scattered than one"
        return Finding(check="hyper-threads", level="warn", seen=seen, why=why, remedy=f"export OMP_NUM_THREADS={len(groups)}")
    return Finding(check="hyper-threads", level="ok", seen=f"{seen}, all ours")


def threads(host: Host) -> Finding:
    """What the environment says about threads, against the cores that there are."""
    given = {name: host.environ[name] for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS") if host.environ.get(name)}
    most = len(host.cores)
    if not given:
        return Finding(check="threads", level="ok", seen=f"left to torch, on {most} cores")
    seen = ", ".join(f"{name}={value}" for name, value in given.items()) + f" on {most} cores"
    remedy = "unset " + " ".join(given)
    count = _threads_set(host)
    if count is None or len(set(given.values())) > 1:
        why = "libraries read it in different ways: nobody knows how many threads run"
        return Finding(check="threads", level="warn", seen=seen, why=why, remedy=remedy)
    if count > most:
        why = "threads wait for one another's turn on a core, and every product waits for the last thread"
        return Finding(check="threads", level="warn", seen=seen, why=why, remedy=f"export OMP_NUM_THREADS={most}")
    if count < min(most, len(_groups(host)) or most, math.floor(machine.cpu_quota_cores(host.root) or most) or 1):
        why = "times will be those of fewer threads than the machine has cores"
        return Finding(check="threads", level="warn", seen=seen, why=why, remedy=f"{remedy}, unless it is meant")
    return Finding(check="threads", level="ok", seen=seen)


def _threads_set(host: Host) -> int | None:
    text = (host.environ.get("OMP_NUM_THREADS") or host.environ.get("MKL_NUM_THREADS") or "").partition(",")[0].strip()
    return int(text) if text.isdigit() and int(text) else None


def _groups(host: Host) -> set[frozenset[int]]:
    """The threads of each core that we may use, our own and others'."""
    lists = {cpu: host.text(f"{CPUS}/cpu{cpu}/topology/thread_siblings_list") for cpu in host.cores}
    return {frozenset(_numbers(text)) | {cpu} for cpu, text in lists.items() if text}


def _numbers(text: str) -> Iterator[int]:
    """`0-2,7` -> 0, 1, 2, 7."""
    for part in text.split(","):
        first, _, last = part.partition("-")
        if first.strip().isdigit():
            yield from range(int(first), int(last or first) + 1)


def clock_source(host: Host) -> Finding:
    """Which hardware the kernel's clock stands on."""
    source = host.text(f"{CPUS.rpartition('/')[0]}/clocksource/clocksource0/current_clocksource")
    if not source:
        return Finding(check="clock source", level="unknown", seen="this system doesn't name it")
    if source in GOOD_CLOCKS:
        return Finding(check="clock source", level="ok", seen=source)
    why = "reading it takes a microsecond or more and goes through the kernel, inside what is timed"
    remedy = "boot with clocksource=tsc tsc=reliable, if the CPU's counter is steady"
    return Finding(check="clock source", level="warn", seen=source, why=why, remedy=remedy)


def clock(host: Host) -> Finding:
    """The smallest step of the clock that timings use; without torch, so said here once more as in `clock.resolution_ns`."""
    steps = []
    for _ in range(STEPS):
        start = host.clock_ns()
        steps.append(next((now - start for now in (host.clock_ns() for _ in range(LONGEST_LOOK)) if now != start), 0))
    if min(steps) <= 0:
        seen = "stands still while it is read" if min(steps) == 0 else f"runs backwards by {-min(steps)} ns"
        return Finding(check="clock", level="unfit", seen=seen, why="no time can be measured with it", remedy="check the machine's clock source")
    seen = f"steps of at most {min(steps):,} ns"
    if min(steps) <= COARSE_NS:
        return Finding(check="clock", level="ok", seen=seen)
    why = "a block of the timing must last a hundred steps, so each measurement takes longer or has fewer samples"
    return Finding(check="clock", level="warn", seen=seen, why=why, remedy="give measure more --seconds, or choose a finer clock source")


def battery(host: Host) -> Finding:
    """Whether a laptop runs on its battery."""
    supplies = [path.parent for path in host.glob("sys/class/power_supply/*/type")]
    # A mouse has a battery too, of scope `Device`.
    own = [p for p in supplies if host.text(p / "type") == "Battery" and host.text(p / "scope") != "Device"]
    if not own:
        return Finding(check="power", level="ok", seen="no battery")
    if not any(host.text(p / "status") == "Discharging" for p in own):
        return Finding(check="power", level="ok", seen="a battery that isn't being used")
    why = "on battery the machine holds its clock and power down, and more so as it empties"
    return Finding(check="power", level="warn", seen="running on battery", why=why, remedy="plug it in")


def virtual_machine(host: Host) -> Finding:
    """Whether the machine is a guest on another."""
    about = host.text("proc/cpuinfo")
    if not about:
        return Finding(check="virtual machine", level="unknown", seen="this system doesn't tell")
    named = [text for part in ("sys_vendor", "product_name") if (text := host.text(f"sys/class/dmi/id/{part}"))]
    flags = {word for line in about.splitlines() if line.startswith("flags") for word in line.split()}
    product = " ".join(named)
    if "hypervisor" not in flags and not host.text("sys/hypervisor/type") and not any(word in product.lower() for word in VIRTUAL):
        return Finding(check="virtual machine", level="ok", seen="no")
    why = "neighbours on the same host can't be seen from here, nor which cores are halves of one"
    remedy = "compare ratios to the anchor, not times, and replay a row at another hour"
    return Finding(check="virtual machine", level="warn", seen=f"yes{f': {product}' if product else ''}", why=why, remedy=remedy)
