"use strict";
// Figures over steps: asked for when they are seen, drawn with the least and the most of each interval.
(() => {
  const colours = ["#4c63d9", "#c8553d", "#2f8f5b", "#b07d12", "#8a4fbf", "#1b8a9e", "#c2477f", "#6b7280"];
  const style = getComputedStyle(document.documentElement);
  const ink = style.getPropertyValue("--dim").trim();
  const line = style.getPropertyValue("--line").trim();
  const drawn = new Map();

  async function draw(plot) {
    const section = plot.closest(".curves");
    const query = new URLSearchParams({ stage: section.dataset.stage, figure: plot.dataset.figure });
    for (const run of JSON.parse(section.dataset.runs)) query.append("run", run);
    for (const group of JSON.parse(section.dataset.groups || "[]")) query.append("group", group.join(","));
    const answer = await fetch(`/curves?${query}`);
    const canvas = plot.querySelector(".canvas");
    if (!answer.ok) { canvas.textContent = "These figures could not be read."; return; }
    const curves = Object.entries(await answer.json());
    if (drawn.has(plot)) { drawn.get(plot).destroy(); drawn.delete(plot); }
    canvas.textContent = "";
    if (!curves.length) { canvas.textContent = "No data."; return; }
    const tables = [];
    const series = [{ label: "step" }];
    const bands = [];
    curves.forEach(([run, curve], index) => {
      const colour = colours[index % colours.length];
      const banded = curve.mean.some((value, at) => value !== curve.most[at] || value !== curve.least[at]);
      tables.push([curve.steps, curve.mean]);
      series.push({ label: run, stroke: colour, width: 1.6, spanGaps: true, points: { show: curve.steps.length < 40 }, value: (_, v) => v == null ? "–" : Number(v).toPrecision(4) });
      if (banded) {
        tables.push([curve.steps, curve.most], [curve.steps, curve.least]);
        const edge = { stroke: "transparent", points: { show: false }, spanGaps: true };
        bands.push({ series: [series.length, series.length + 1], fill: `${colour}2e` });
        series.push({ label: "most", ...edge }, { label: "least", ...edge });
      }
    });
    const axis = { stroke: ink, grid: { stroke: line, width: 1 }, ticks: { stroke: line, width: 1 }, font: "11px system-ui" };
    const options = { width: canvas.clientWidth || 340, height: 170, series, bands, scales: { x: { time: false } }, axes: [axis, { ...axis, size: 56 }], cursor: { sync: { key: section.dataset.stage } }, legend: { show: curves.length > 1 } };
    drawn.set(plot, new uPlot(options, uPlot.join(tables), canvas));
  }

  const seen = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (entry.isIntersecting) { seen.unobserve(entry.target); draw(entry.target); }
    }
  }, { rootMargin: "200px" });
  const plots = [...document.querySelectorAll(".plot")];
  plots.forEach((plot) => seen.observe(plot));
  let pending = 0;
  document.body.addEventListener("runs-changed", () => {
    clearTimeout(pending);
    pending = setTimeout(() => { for (const plot of [...drawn.keys()]) draw(plot); }, 500);
  });
  addEventListener("resize", () => { for (const [plot, chart] of drawn) chart.setSize({ width: plot.querySelector(".canvas").clientWidth, height: 170 }); });

  for (const section of document.querySelectorAll(".curves")) {
    const pick = section.querySelector(".pick");
    const more = section.querySelector(".more");
    const own = [...section.querySelectorAll(".plot")];
    const show = (all) => {
      const word = pick.value.trim().toLowerCase().replaceAll(" ", "_");
      own.forEach((plot, index) => { plot.hidden = word ? !plot.dataset.figure.includes(word) : !all && index >= Number(pick.dataset.shown); });
    };
    pick.addEventListener("input", () => show(false));
    if (more) more.addEventListener("click", () => { show(true); more.hidden = true; });
  }
})();
