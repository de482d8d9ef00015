// Draws the charts from the numbers in #payload and wires the filters. Text from results is only ever set as text, never as markup.
"use strict";
(() => {
  const book = JSON.parse(document.getElementById("payload").textContent);
  const $ = (id) => document.getElementById(id);
  const state = { machine: book.machines[0], data: book.data[0], axis: book.axes[0].key, log: true, rule: "better", hidden: new Set(), hot: null, at: -1 };
  const CROWD = 12;
  const NS = "http://www.w3.org/2000/svg";

  function node(parent, name, attributes = {}, text = "") {
    const made = name.startsWith("svg:") ? document.createElementNS(NS, name.slice(4)) : document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    if (text) made.textContent = text;
    if (parent) parent.append(made);
    return made;
  }
  const colour = (system) => `var(--c${book.systems[system].colour})`;
  const format = (v) => (v === 0 ? "0" : Math.abs(v) >= 100 ? v.toLocaleString("en", { maximumFractionDigits: 0 }) : String(Number(v.toPrecision(3))));

  // Outlines of radius 1, drawn in the order of legends.
  const OUTLINES = {
    circle: "M-1 0A1 1 0 1 1 1 0A1 1 0 1 1 -1 0Z", square: "M-.88 -.88H.88V.88H-.88Z", diamond: "M0 -1.25L1.25 0L0 1.25L-1.25 0Z", up: "M0 -1.15L1.15 .9H-1.15Z",
    down: "M0 1.15L1.15 -.9H-1.15Z", plus: "M-.4 -1.15H.4V-.4H1.15V.4H.4V1.15H-.4V.4H-1.15V-.4H-.4Z",
    cross: "M-1.1 -.55L-.55 -1.1L0 -.55L.55 -1.1L1.1 -.55L.55 0L1.1 .55L.55 1.1L0 .55L-.55 1.1L-1.1 .55L-.55 0Z", hexagon: "M0 -1.15L1 -.58V.58L0 1.15L-1 .58V-.58Z",
  };
  function mark(parent, system, x, y, r, faint) {
    const look = book.systems[system];
    return node(parent, "svg:path", {
      d: OUTLINES[look.shape], transform: `translate(${x} ${y}) scale(${r})`, fill: look.hollow ? "var(--paper)" : colour(system), opacity: faint ? 0.4 : 1,
      stroke: look.hollow ? colour(system) : "var(--paper)", "stroke-width": look.hollow ? 1.6 : 1, "vector-effect": "non-scaling-stroke",
    });
  }

  // A scale: from values to pixels, with round ticks.
  function scale(values, from, to, log) {
    let low = Math.min(...values), high = Math.max(...values);
    if (log) { const pad = Math.max(0.04, 0.06 * Math.log10(high / low)); low *= 10 ** -pad; high *= 10 ** pad; } else { const pad = 0.04 * (high - low || 1); high += pad; if (low > 0) low = Math.max(0, low - pad); }
    const t = log ? Math.log10 : (v) => v;
    const map = (v) => from + ((t(v) - t(low)) / (t(high) - t(low) || 1)) * (to - from);
    const ticks = [];
    if (log) {
      for (let e = Math.floor(Math.log10(low)); e <= Math.ceil(Math.log10(high)); e++) for (const m of [1, 2, 5]) ticks.push(m * 10 ** e);
    } else {
      const raw = (high - low) / 5, unit = 10 ** Math.floor(Math.log10(raw)), step = [1, 2, 5, 10].map((m) => m * unit).find((s) => s >= raw);
      for (let v = Math.ceil(low / step) * step; v <= high; v += step) ticks.push(Number(v.toPrecision(10)));
    }
    return { map, low, high, ticks: ticks.filter((v) => v >= low && v <= high) };
  }

  function frame(host, xs, ys, log, xTitle, yTitle, lines) {
    host.replaceChildren();
    const width = Math.max(280, host.clientWidth), phone = width < 560, height = Math.round(Math.min(520, Math.max(320, width * 0.54)));
    const box = { left: 40, right: width - (phone ? 12 : 96), top: 26, bottom: height - 46, width, height, phone };
    const svg = node(host, "svg:svg", { viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" });
    const x = scale(xs, box.left + 8, box.right, log);
    const y = scale([...ys, ...lines.map((l) => l.value)], box.bottom, box.top, false);
    for (const v of y.ticks) {
      node(svg, "svg:line", { x1: box.left, x2: box.right, y1: y.map(v), y2: y.map(v), stroke: "var(--line)" });
      node(svg, "svg:text", { x: box.left - 8, y: y.map(v) + 4, "text-anchor": "end" }, format(v));
    }
    let last = -99;
    for (const v of x.ticks) {
      if (x.map(v) - last < 34) continue;
      last = x.map(v);
      node(svg, "svg:line", { x1: last, x2: last, y1: box.bottom, y2: box.bottom + 5, stroke: "var(--steps)" });
      node(svg, "svg:text", { x: last, y: box.bottom + 19, "text-anchor": "middle" }, format(v));
    }
    node(svg, "svg:line", { x1: box.left, x2: box.right, y1: box.bottom, y2: box.bottom, stroke: "var(--steps)" });
    node(svg, "svg:text", { x: box.right, y: box.bottom + 38, "text-anchor": "end" }, xTitle);
    node(svg, "svg:text", { x: 0, y: 12 }, yTitle);
    const taken = [];
    for (const l of lines) {
      node(svg, "svg:line", { x1: box.left, x2: box.right, y1: y.map(l.value), y2: y.map(l.value), stroke: "var(--soft)", "stroke-dasharray": l.name === "chance" ? "1 4" : "6 4" });
      node(svg, "svg:text", { x: l.name === "chance" ? box.right - 4 : box.left + 6, y: y.map(l.value) - 5, "text-anchor": l.name === "chance" ? "end" : "start", class: "halo" }, l.name);
      taken.push(l.name === "chance" ? { l: box.right - 50, r: box.right, t: y.map(l.value) - 17, b: y.map(l.value) } : { l: box.left, r: box.left + 130, t: y.map(l.value) - 17, b: y.map(l.value) });
    }
    return { svg, x, y, box, taken };
  }

  // Labels beside their points, the first free place of several; a label without one is left out, the legend has it.
  function label(svg, box, wanted, taken) {
    const hits = (a) => taken.some((b) => a.l < b.r && b.l < a.r && a.t < b.b && b.t < a.b);
    for (const w of wanted) {
      const text = node(svg, "svg:text", { class: "halo", style: `fill: ${w.fill}; font-weight: ${w.bold ? 700 : 500}` }, w.text);
      const wide = text.getComputedTextLength(), tall = 13;
      const places = [[9, 0, 0], [-wide / 2, -14, 0], [-9 - wide, 0, 0], [-wide / 2, 15, 0]];
      for (const reach of [14, 22, 30]) for (const up of [-1, 1]) places.push([9, up * reach, 0], [-9 - wide, up * reach, 0]);
      let put = null;
      for (const [dx, dy] of places) {
        const at = { l: w.x + dx, r: w.x + dx + wide, t: w.y + dy - tall / 2, b: w.y + dy + tall / 2 };
        if (at.l >= box.left && at.r <= box.width - 2 && at.t >= 14 && at.b <= box.bottom && !hits(at)) { put = at; break; }
      }
      if (!put) { text.remove(); continue; }
      taken.push(put);
      text.setAttribute("x", put.l);
      text.setAttribute("y", put.b - 3);
    }
  }

  let shown = [];
  function visible(p) {
    const rule = state.rule === "better" ? p.shown : state.rule === "all" || p.rule === state.rule || p.rule === "none";
    return p.machine === state.machine && p.data === state.data && rule && !state.hidden.has(p.system) && p.cost[state.axis];
  }

  function drawChart() {
    const axis = book.axes.find((a) => a.key === state.axis);
    const points = book.points.filter(visible);
    const host = $("chart");
    $("tip").hidden = true;
    state.at = -1;
    shown = [];
    if (!points.length) { host.replaceChildren(node(null, "p", { class: "dim" }, "Nothing to draw: no visible system has both top-1 and this cost on this data set.")); return; }
    const lines = Object.entries(book.lines[state.data] || {}).map(([name, value]) => ({ name, value }));
    const ys = points.flatMap((p) => p.top1.filter((v) => v !== null));
    const { svg, x, y, box, taken } = frame(host, points.map((p) => p.cost[state.axis][0]), ys, state.log, `${axis.title}, ${axis.unit} ${axis.more ? "(more is better) →" : "(less is better)"}`, "top-1, %", lines);
    const placed = points.map((p) => ({ p, x: x.map(p.cost[state.axis][0]), y: y.map(p.top1[0]) }));

    const best = new Map();
    for (const q of placed) if (!best.has(q.p.system) || q.p.top1[0] > best.get(q.p.system).p.top1[0]) best.set(q.p.system, q);
    const onFront = new Set(placed.filter((q) => q.p.front.includes(state.axis)).map((q) => q.p.system));
    const weight = (q) => (q.p.system === book.method ? 4000 : 0) + (q.p.system === book.anchor ? 2000 : 0) + (onFront.has(q.p.system) ? 1000 : 0) + q.p.top1[0];
    const ranked = [...best.values()].sort((a, b) => weight(b) - weight(a));
    const near = new Set(ranked.slice(0, ranked.length > CROWD ? CROWD / 2 + 1 : CROWD).map((q) => q.p.system));
    if (state.hot) near.add(state.hot);
    const faint = (system) => (state.hot ? system !== state.hot : !near.has(system));

    const steps = placed.filter((q) => q.p.front.includes(state.axis)).sort((a, b) => (axis.more ? b.x - a.x : a.x - b.x));
    if (steps.length) node(svg, "svg:path", { d: steps.map((q, i) => (i ? `H${q.x}V${q.y}` : `M${q.x} ${q.y}`)).join(""), fill: "none", stroke: "var(--steps)", "stroke-width": 2, "stroke-linejoin": "round" });

    const series = new Map();
    for (const q of placed) series.set(q.p.series, [...(series.get(q.p.series) || []), q]);
    for (const own of series.values()) {
      const system = own[0].p.system, kept = [];
      for (const q of [...own].sort((a, b) => (axis.more ? b.x - a.x : a.x - b.x) || a.y - b.y)) if (!kept.length || q.y < kept[kept.length - 1].y) kept.push(q);
      node(svg, "svg:path", { d: "M" + kept.map((q) => `${q.x} ${q.y}`).join("L"), fill: "none", stroke: colour(system), "stroke-width": system === book.method ? 2.4 : 1.2, opacity: faint(system) ? 0.22 : 0.85 });
    }
    const order = [...placed].sort((a, b) => (faint(b.p.system) ? 1 : 0) - (faint(a.p.system) ? 1 : 0) || (a.p.system === book.method ? 1 : 0) - (b.p.system === book.method ? 1 : 0));
    for (const q of order) {
      const system = q.p.system, cost = q.p.cost[state.axis], r = system === book.method ? 5.2 : 4;
      if (!faint(system)) {
        const bar = { stroke: colour(system), opacity: 0.4 };
        if (q.p.top1[1] !== null) node(svg, "svg:line", { x1: q.x, x2: q.x, y1: y.map(q.p.top1[1]), y2: y.map(q.p.top1[2]), ...bar });
        if (cost[1] !== null) node(svg, "svg:line", { x1: x.map(Math.max(cost[1], x.low)), x2: x.map(Math.min(cost[2], x.high)), y1: q.y, y2: q.y, ...bar });
        if ((q.p.sure[state.axis] || 0) >= 0.95) node(svg, "svg:circle", { cx: q.x, cy: q.y, r: r + 4, fill: "none", stroke: colour(system), "stroke-width": 1.2, opacity: 0.8 });
      }
      mark(svg, system, q.x, q.y, faint(system) ? r * 0.75 : r, faint(system));
    }
    taken.push(...placed.filter((q) => !faint(q.p.system)).map((q) => ({ l: q.x - 5, r: q.x + 5, t: q.y - 5, b: q.y + 5 })));
    // A name stands at the right end of its line, where lines are apart.
    const end = (system) => placed.filter((q) => q.p.system === system).reduce((a, b) => (b.x > a.x ? b : a));
    label(svg, box, ranked.filter((q) => !faint(q.p.system)).map((q) => ({ q, at: end(q.p.system) })).map(({ q, at }) => ({ text: q.p.system, x: at.x, y: at.y, fill: colour(q.p.system), bold: q.p.system === book.method })), taken);
    state.ring = node(svg, "svg:circle", { r: 9, fill: "none", stroke: "var(--ink)", "stroke-width": 1.5, visibility: "hidden" });
    shown = placed.sort((a, b) => a.x - b.x);
    state.box = box;
  }

  function tell(q) {
    const tip = $("tip"), axis = book.axes.find((a) => a.key === state.axis);
    if (!q) { tip.hidden = true; if (state.ring) state.ring.setAttribute("visibility", "hidden"); return; }
    tip.replaceChildren();
    node(tip, "b", { style: `color: ${colour(q.p.system)}` }, q.p.series + (q.p.setting ? `, ${q.p.setting}` : ""));
    node(tip, "div", {}, `top-1 ${q.p.text} %`);
    const c = q.p.cost[state.axis];
    node(tip, "div", {}, `${format(c[0])} ${axis.unit}` + (c[1] !== null ? ` [${format(c[1])}, ${format(c[2])}]` : ""));
    const sure = q.p.sure[state.axis];
    if (sure !== undefined) node(tip, "span", {}, `on the front in ${(100 * sure).toFixed(0)} % of the draws`);
    const others = book.axes.filter((a) => a.key !== state.axis && q.p.cost[a.key]).map((a) => `${format(q.p.cost[a.key][0])} ${a.unit}`);
    if (others.length) node(tip, "span", {}, others.join(" · "));
    if (q.p.knobs) node(tip, "span", {}, q.p.knobs);
    if (q.p.flags) node(tip, "span", {}, q.p.flags);
    tip.hidden = false;
    const ratio = $("chart").clientWidth / state.box.width, wide = tip.offsetWidth;
    tip.style.left = `${Math.min(Math.max(0, q.x * ratio + (q.x > state.box.width / 2 ? -wide - 16 : 16)), Math.max(0, $("chart").clientWidth - wide))}px`;
    tip.style.top = `${Math.max(0, q.y * ratio - 30)}px`;
    state.ring.setAttribute("cx", q.x);
    state.ring.setAttribute("cy", q.y);
    state.ring.setAttribute("visibility", "visible");
  }
  $("chart").addEventListener("pointermove", (event) => {
    if (!shown.length) return;
    const edge = $("chart").getBoundingClientRect(), ratio = state.box.width / edge.width, x = (event.clientX - edge.left) * ratio, y = (event.clientY - edge.top) * ratio;
    const near = shown.reduce((a, b) => ((b.x - x) ** 2 + (b.y - y) ** 2 < (a.x - x) ** 2 + (a.y - y) ** 2 ? b : a));
    tell((near.x - x) ** 2 + (near.y - y) ** 2 < 900 ? near : null);
  });
  $("chart").addEventListener("pointerleave", () => tell(null));
  $("chart").addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1 }[event.key];
    if (event.key === "Escape") tell(null);
    if (!step || !shown.length) return;
    event.preventDefault();
    state.at = (state.at + step + shown.length) % shown.length;
    tell(shown[state.at]);
  });
  $("chart").addEventListener("blur", () => tell(null));

  function drawCurves() {
    const host = $("curves");
    if (!host) return;
    const curves = book.curves.filter((c) => c.machine === state.machine && c.data === state.data && !state.hidden.has(c.system));
    if (!curves.length) { host.replaceChildren(node(null, "p", { class: "dim" }, "No visible system has a training curve on this data set.")); return; }
    const all = curves.flatMap((c) => c.values);
    const { svg, x, y, box } = frame(host, [0, ...all.map((v) => v[0])], [0, ...all.map((v) => v[1])], false, "training, core-seconds", "val top-1, %", []);
    const best = new Map();
    for (const c of curves) { const end = c.values[c.values.length - 1]; if (!best.has(c.system) || end[1] > best.get(c.system)[1]) best.set(c.system, end); }
    const ranked = [...best].sort((a, b) => (b[0] === book.method) - (a[0] === book.method) || (b[0] === book.anchor) - (a[0] === book.anchor) || b[1][1] - a[1][1]);
    const near = new Set(ranked.slice(0, ranked.length > CROWD ? CROWD / 2 + 1 : CROWD).map((r) => r[0]));
    const faint = (system) => (state.hot ? system !== state.hot : !near.has(system));
    for (const c of [...curves].sort((a, b) => (a.system === book.method) - (b.system === book.method))) {
      const path = node(svg, "svg:path", { d: "M" + c.values.map((v) => `${x.map(v[0])} ${y.map(v[1])}`).join("L"), fill: "none", stroke: colour(c.system), "stroke-width": c.system === book.method ? 2.4 : 1.2, opacity: faint(c.system) ? 0.22 : 0.85 });
      node(path, "svg:title", {}, c.title);
      for (const v of c.values) mark(svg, c.system, x.map(v[0]), y.map(v[1]), c.system === book.method ? 4 : 3, faint(c.system));
    }
    label(svg, box, ranked.filter((r) => !faint(r[0])).map(([system, end]) => ({ text: system, x: x.map(end[0]), y: y.map(end[1]), fill: colour(system), bold: system === book.method })), []);
  }

  function drawLegend() {
    const host = $("legend");
    host.replaceChildren();
    for (const group of book.groups) {
      const systems = Object.keys(book.systems).filter((s) => book.systems[s].group === group), row = node(host, "div");
      const off = systems.every((s) => state.hidden.has(s));
      const head = node(row, "button", { type: "button", class: "group", "aria-pressed": String(!off), style: `color: ${colour(systems[0])}` }, group);
      head.addEventListener("click", () => { systems.forEach((s) => (off ? state.hidden.delete(s) : state.hidden.add(s))); update(); });
      for (const system of systems) {
        const button = node(row, "button", { type: "button", class: "system", "aria-pressed": String(!state.hidden.has(system)) });
        mark(node(button, "svg:svg", { width: 13, height: 13, viewBox: "-6.5 -6.5 13 13", "aria-hidden": "true" }), system, 0, 0, 4, false);
        node(button, "span", {}, system);
        button.addEventListener("click", () => { if (!state.hidden.delete(system)) state.hidden.add(system); state.hot = null; update(); });
        button.addEventListener("pointerenter", (event) => { if (event.pointerType === "mouse" && !state.hidden.has(system)) { state.hot = system; drawChart(); drawCurves(); } });
        button.addEventListener("pointerleave", () => { if (state.hot) { state.hot = null; drawChart(); drawCurves(); } });
      }
    }
  }

  const body = document.querySelector("#rows tbody");
  function filterRows() {
    const wanted = $("find").value.toLowerCase();
    let count = 0;
    for (const row of body.rows) {
      const of = row.dataset, rule = state.rule === "better" || state.rule === "all" || !of.rule || of.rule === state.rule || of.rule === "none";
      const show = rule && !state.hidden.has(of.system) && (book.machines.length < 2 || of.machine === state.machine) && (!wanted || `${row.cells[0].textContent} ${row.cells[1].textContent} ${of.group}`.toLowerCase().includes(wanted));
      row.hidden = !show;
      count += show;
    }
    $("count").textContent = `${count} of ${body.rows.length} rows`;
  }
  document.querySelectorAll("#rows .sort").forEach((button) => button.addEventListener("click", () => {
    const head = button.parentElement, up = head.getAttribute("aria-sort") !== "ascending", at = head.cellIndex;
    document.querySelectorAll("#rows th[aria-sort]").forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const numeric = head.classList.contains("n");
    const key = (row) => (numeric ? (row.cells[at].dataset.v === undefined ? null : Number(row.cells[at].dataset.v)) : row.cells[at].textContent.trim());
    // What has no value goes last, whichever way the column is sorted.
    const compare = (a, b) => { const [x, y] = [key(a), key(b)]; return x === null || y === null ? (x === null) - (y === null) : (up ? 1 : -1) * (numeric ? x - y : x.localeCompare(y)); };
    body.append(...[...body.rows].sort(compare));
  }));
  document.querySelectorAll(".cols").forEach((box) => {
    const paint = () => document.querySelectorAll(`#rows .g-${box.value}`).forEach((cell) => { cell.hidden = !box.checked; });
    box.addEventListener("change", paint);
    paint();
  });
  $("find").addEventListener("input", filterRows);

  document.querySelectorAll(".copy").forEach((button) => button.addEventListener("click", async () => {
    const done = () => { button.textContent = "copied"; setTimeout(() => { button.textContent = "copy"; }, 1400); };
    try { await navigator.clipboard.writeText(button.dataset.copy); done(); } catch {
      const area = node(document.body, "textarea", {}, button.dataset.copy);
      area.select();
      if (document.execCommand("copy")) done(); else window.prompt("Copy the command:", button.dataset.copy);
      area.remove();
    }
  }));

  function segments(host, items, key) {
    for (const item of items) {
      const button = node(host, "button", { type: "button" }, item.title);
      button.addEventListener("click", () => { state[key] = item.key; update(); });
      button.dataset.key = item.key;
    }
    return () => host.querySelectorAll("button").forEach((b) => b.setAttribute("aria-pressed", String(b.dataset.key === state[key])));
  }
  const marks = [segments($("data"), book.data.map((d) => ({ key: d, title: d })), "data"), segments($("axis"), book.axes, "axis")];
  $("log").addEventListener("change", () => { state.log = $("log").checked; drawChart(); });
  $("rule").addEventListener("change", () => { state.rule = $("rule").value; update(); });
  if (book.machines.length > 1) {
    $("machine-label").hidden = false;
    for (const name of book.machines) node($("machine"), "option", { value: name }, name);
    $("machine").addEventListener("change", () => { state.machine = $("machine").value; update(); });
  }
  function update() {
    marks.forEach((paint) => paint());
    document.querySelectorAll(".by-data").forEach((part) => { part.hidden = part.dataset.data !== state.data || part.dataset.machine !== state.machine; });
    drawLegend();
    drawChart();
    drawCurves();
    filterRows();
  }

  const keep = { get: () => { try { return localStorage.getItem("theme"); } catch { return null; } }, set: (v) => { try { localStorage.setItem("theme", v); } catch { /* a page from disk may not keep it */ } } };
  if (keep.get()) document.documentElement.dataset.theme = keep.get();
  $("theme").addEventListener("click", () => {
    const now = document.documentElement.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
    document.documentElement.dataset.theme = now === "dark" ? "light" : "dark";
    keep.set(document.documentElement.dataset.theme);
  });
  let wide = 0;
  new ResizeObserver(() => { if ($("chart").clientWidth !== wide) { wide = $("chart").clientWidth; drawChart(); drawCurves(); } }).observe($("chart"));
  update();
})();
