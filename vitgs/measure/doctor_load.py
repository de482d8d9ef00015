"""The doctor's checks of what happens on the machine at this moment: other work, stolen time, swapping, heat.

Most compare two readings of the kernel's counters, taken while the doctor itself sleeps.
"""

from __future__ import annotations

import os
import re

from vitgs.measure import machine
from vitgs.measure.host import Finding, Host, Level, Reading
from vitgs.numbers import percent, quantity

LIMIT = machine.FOREIGN_LIMIT  # above it `measure` flags its own numbers as contaminated
STOLEN_LIMIT = 0.01
PRESSURE_LIMIT = 1.0  # percent of the last ten seconds
FEWEST_FREE = 0.05  # of the memory


def other_load(before: Reading, after: Reading) -> Finding:
    """Which share of all cores others use."""
    share = machine.foreign_share(before.cpu, after.cpu)
    if share is None:
        return Finding(check="other load", level="unknown", seen="this system doesn't tell how busy it is", remedy="look with `top` before measuring")
    seen = f"others use {percent(share, 0)} % of all cores{_busiest(before, after)}"
    if share <= LIMIT / 2:
        return Finding(check="other load", level="ok", seen=seen)
    limit = f"measure marks its numbers as contaminated above {percent(LIMIT, 0)} %"
    level: Level = "unfit" if share > LIMIT else "warn"
    why = f"{limit}: they would say how busy the machine is" if share > LIMIT else f"{limit}, and this is near it"
    return Finding(check="other load", level=level, seen=seen, why=why, remedy="end the other work, or wait until it is done")


def _busiest(before: Reading, after: Reading) -> str:
    """The names of up to two processes that took more than a twentieth of a core."""
    wall_s = after.cpu.wall_s - before.cpu.wall_s
    spent = {pid: ticks - before.processes[pid][1] for pid, (_, ticks) in after.processes.items() if pid in before.processes}
    least = 0.05 * wall_s * os.sysconf("SC_CLK_TCK")
    most = sorted((pid for pid, ticks in spent.items() if ticks > least), key=lambda pid: -spent[pid])[:2]
    return f": {', '.join(f'{after.processes[pid][0]} (process {pid})' for pid in most)}" if most else ""


def load_average(host: Host) -> Finding:
    """How busy the last minutes were; one running process is the doctor itself."""
    try:
        one, five, fifteen = map(float, host.text("proc/loadavg").split()[:3])
    except ValueError:
        return Finding(check="load average", level="unknown", seen="this system doesn't tell", remedy="look with `uptime` before measuring")
    seen = f"{one:g}, {five:g}, {fifteen:g} over 1, 5, 15 minutes, on {host.cpu_count} cores"
    if one <= LIMIT * host.cpu_count + 1:
        return Finding(check="load average", level="ok", seen=seen)
    why = "work that comes and goes lands in some blocks of the timing and not in others"
    return Finding(check="load average", level="warn", seen=seen, why=why, remedy="wait a minute after other work has ended, and ask again")


def stolen_time(before: Reading, after: Reading) -> Finding:
    """Time that the host of a virtual machine gave to others."""
    if before.all_ticks is None or after.all_ticks is None or before.stolen_ticks is None or after.stolen_ticks is None:
        return Finding(check="stolen time", level="unknown", seen="this system doesn't count it")
    if after.all_ticks <= before.all_ticks:
        return Finding(check="stolen time", level="unknown", seen="the counter stands still")
    share = max(after.stolen_ticks - before.stolen_ticks, 0) / (after.all_ticks - before.all_ticks)
    seen = f"{percent(share)} % now, {percent(after.stolen_ticks / after.all_ticks)} % since the start"
    if share <= STOLEN_LIMIT:
        return Finding(check="stolen time", level="ok", seen=seen)
    why = "the host gave these cores to other tenants, and the clock ran on"
    return Finding(check="stolen time", level="warn", seen=seen, why=why, remedy="measure at another hour, or on a host with cores of your own")


def memory(host: Host, before: Reading, after: Reading) -> Finding:
    """Swapping, pressure, and how much is free."""
    about = host.fields("proc/meminfo")
    if not {"MemTotal", "MemAvailable"} <= about.keys():
        return Finding(check="memory", level="unknown", seen="this system doesn't tell", remedy="see that nothing is swapped out while measuring")
    free, swapped = about["MemAvailable"], about.get("SwapTotal", 0) - about.get("SwapFree", 0)
    seen = f"{quantity(1024.0 * free, 'bytes')} free, {quantity(1024.0 * swapped, 'bytes') if swapped else 'nothing'} swapped out"
    stall = re.search(r"^some avg10=([\d.]+)", host.text("proc/pressure/memory"))
    moved = None if before.swapped_pages is None or after.swapped_pages is None else after.swapped_pages - before.swapped_pages
    doubts = []
    if moved:
        doubts.append(f"{moved} pages swapped while watching")
    if stall and float(stall.group(1)) > PRESSURE_LIMIT:
        doubts.append(f"somebody waited for memory in {stall.group(1)} % of the last 10 s")
    if free < FEWEST_FREE * about["MemTotal"]:
        doubts.append(f"less than {percent(FEWEST_FREE, 0)} % free")
    if not doubts:
        return Finding(check="memory", level="ok", seen=seen)
    why = "a page that comes back from the disk costs a thousand times a page that is there"
    return Finding(
        check="memory", level="warn", seen="; ".join([seen, *doubts]), why=why, remedy="end what holds the memory, or measure a smaller batch"
    )


def throttling(before: Reading, after: Reading) -> Finding:
    """Whether heat slowed the cores while the doctor looked, its self-test included."""
    if before.throttled is None or after.throttled is None:
        return Finding(check="heat", level="unknown", seen="this system has no throttle counters of the CPU")
    grown = after.throttled - before.throttled
    if grown <= 0:
        return Finding(check="heat", level="ok", seen=f"not slowed while watching, {after.throttled} times since the start")
    why = "a hot core lowers its clock: what is timed late seems slower than what is timed early"
    return Finding(check="heat", level="warn", seen=f"slowed {grown} times while watching", why=why, remedy="let it cool and see to its cooling")
