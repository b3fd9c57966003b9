// Values under the pointer, and zoom over the common axis of steps. The page is whole without it.
(() => {
  const NS = "http://www.w3.org/2000/svg", L = 44, W = 340, TOP = 6, H = 104;
  const charts = [...document.querySelectorAll("svg.chart")];
  const box = document.createElement("div");
  box.className = "tip";
  document.body.append(box);
  const numbers = (text) => {
    const range = /^(\d+):(\d+)$/.exec(text);
    if (!range) return text.split(" ").map(Number);
    return Array.from({ length: range[2] - range[1] + 1 }, (_, i) => +range[1] + i);
  };
  const show = (value) => Number(value.toPrecision(4)).toLocaleString("en", { maximumSignificantDigits: 4 });
  const nearest = (xs, x) => xs.reduce((best, v, i) => (Math.abs(v - x) < Math.abs(xs[best] - x) ? i : best), 0);
  const groups = new Map(); // charts with the same axis of steps zoom together
  for (const svg of charts) {
    const last = +svg.dataset.last, margin = +svg.dataset.margin;
    const key = `${svg.closest("[data-zoom]")?.dataset.zoom ?? ""}/${last}`;
    if (!groups.has(key)) groups.set(key, { full: [-margin, last + margin], view: [-margin, last + margin], charts: [] });
    const group = groups.get(key);
    const area = svg.querySelector("svg.area"), ticks = svg.querySelector(".xticks");
    const curves = [...area.querySelectorAll("[data-x]")].map((path) => ({
      label: path.dataset.label, xs: numbers(path.dataset.x), ys: numbers(path.dataset.y), class: path.getAttribute("class"),
    }));
    const line = document.createElementNS(NS, "path"), mark = document.createElementNS(NS, "rect");
    line.setAttribute("class", "cursor");
    mark.setAttribute("class", "mark");
    area.append(line, mark);
    const chart = { svg, area, ticks, curves, line, mark, group };
    group.charts.push(chart);
    listen(chart);
  }
  function place(chart, event) { // the step under the pointer
    const frame = chart.svg.getBoundingClientRect();
    const inside = ((event.clientX - frame.left) / frame.width * 390 - L) / W;
    const [a, b] = chart.group.view;
    return a + Math.min(1, Math.max(0, inside)) * (b - a);
  }
  function across(chart, step) { // a step's place in the unzoomed chart
    const [a, b] = chart.group.full;
    return (step - a) / (b - a) * W;
  }
  function point(chart, event) {
    const step = place(chart, event), [a, b] = chart.group.view;
    const seen = chart.curves.flatMap((curve) => curve.xs.filter((x) => x >= a && x <= b));
    if (!seen.length) return;
    const x = seen[nearest(seen, step)];
    chart.line.setAttribute("d", `M${across(chart, x)} 0V${H}`);
    const rows = [`${chart.svg.querySelector(".xlabel").textContent} ${x}`];
    for (const curve of chart.curves) {
      const i = nearest(curve.xs, x);
      rows.push(`${curve.label || "value"}: ${show(curve.ys[i])}${curve.xs[i] === x ? "" : ` (at ${curve.xs[i]})`}`);
    }
    box.textContent = rows.join("\n");
    box.style.display = "block";
    const left = Math.min(event.clientX + 14, innerWidth - box.offsetWidth - 8);
    box.style.left = `${Math.max(4, left)}px`;
    box.style.top = `${Math.min(event.clientY + 16, innerHeight - box.offsetHeight - 8)}px`;
  }
  function zoom(group, view) {
    group.view = view;
    const [a, b] = view, size = (b - a) / 6, power = 10 ** Math.floor(Math.log10(size));
    const gap = Math.max(1, Math.round([1, 2, 2.5, 5, 10].map((f) => f * power).find((s) => s >= size * 0.999)));
    for (const chart of group.charts) {
      const from = across(chart, a), to = across(chart, b);
      chart.area.setAttribute("viewBox", `${from} 0 ${to - from} ${H}`);
      chart.ticks.replaceChildren();
      for (let x = Math.ceil(Math.max(0, a) / gap) * gap; x <= Math.min(b, group.full[1]); x += gap) {
        const text = document.createElementNS(NS, "text");
        text.setAttribute("x", L + (x - a) / (b - a) * W);
        text.setAttribute("y", 123);
        text.textContent = x.toLocaleString("en");
        chart.ticks.append(text);
      }
    }
  }
  function listen(chart) {
    let from = null;
    const { svg, mark, line, group } = chart;
    svg.addEventListener("pointermove", (event) => {
      point(chart, event);
      if (from === null) return;
      const [a, b] = [across(chart, from), across(chart, place(chart, event))].sort((x, y) => x - y);
      Object.entries({ x: a, y: 0, width: b - a, height: H }).forEach(([k, v]) => mark.setAttribute(k, v));
    });
    svg.addEventListener("pointerdown", (event) => { if (event.pointerType === "mouse") from = place(chart, event); });
    addEventListener("pointerup", (event) => {
      if (from === null) return;
      const [a, b] = [from, place(chart, event)].sort((x, y) => x - y);
      from = null;
      mark.setAttribute("width", 0);
      if (b - a > 0.02 * (group.full[1] - group.full[0])) zoom(group, [a, b]);
    });
    svg.addEventListener("pointerleave", () => { box.style.display = "none"; line.removeAttribute("d"); });
    svg.addEventListener("dblclick", () => zoom(group, group.full));
  }
})();
