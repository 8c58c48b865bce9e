"use strict";

/* What is on the page and does not come from the service: opened details, ticked boxes, drawn charts. */
Idiomorph.defaults.callbacks.beforeAttributeUpdated = (name, element) => !(name === "open" && element.tagName === "DETAILS");
Idiomorph.defaults.callbacks.beforeNodeMorphed = (old, fresh) => {
  if (!(old instanceof Element)) return true;
  if (old.matches("input[type=checkbox]") && fresh instanceof Element) fresh.toggleAttribute("checked", old.checked);
  if (old.matches("[data-chart]")) {
    if (fresh.dataset) old.dataset.live = fresh.dataset.live ?? "";
    return false;
  }
  return true;
};

/* Looks again and again only while somebody looks at the page. */
document.addEventListener("htmx:beforeRequest", (event) => {
  if (document.hidden && event.target.id === "poll") event.preventDefault();
});

/* While the service does not answer, the page says so and goes on asking. */
const offline = document.getElementById("offline");
document.addEventListener("htmx:sendError", () => { offline.hidden = false; });
document.addEventListener("htmx:responseError", (event) => {
  if (event.detail.xhr.status >= 500) offline.hidden = false;
  else if (event.target.id === "poll") location.reload(); // such as a job that somebody has deleted: the page says so
});
document.addEventListener("htmx:afterOnLoad", (event) => {
  if (event.detail.successful) offline.hidden = true;
});

/* Comparing takes two jobs or more. */
function countPicked() {
  const button = document.getElementById("compare-button");
  if (!button) return;
  const picked = document.querySelectorAll("input[name=job]:checked").length;
  button.disabled = picked < Number(button.dataset.needs) || picked > 8;
  button.textContent = picked < 2 ? "Compare" : `Compare ${picked} jobs`;
}
document.addEventListener("change", countPicked);

/* Charts. Their colours are those of the page, in light and in dark. */
const drawn = new Map();

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

function options(holder, label) {
  const axis = (text) => ({
    label: text, labelSize: 22, labelFont: "12px system-ui, sans-serif", font: "12px system-ui, sans-serif",
    stroke: colour("--muted"), grid: { stroke: colour("--line"), width: 1 }, ticks: { stroke: colour("--line"), width: 1 },
  });
  const points = holder.dataset.chart === "curve";
  return {
    width: Math.max(holder.clientWidth - 16, 200), height: 260,
    scales: { x: { time: false, range: (chart, low, high) => points ? [low - (high - low || 1) * 0.06, high + (high - low || 1) * 0.06] : [low, high] } },
    cursor: { y: false, points: { size: 8 } },
    axes: [axis(holder.dataset.x), { ...axis(holder.dataset.y), size: 58 }],
    series: [
      { label: holder.dataset.x },
      { label, stroke: colour("--accent"), width: 2, spanGaps: true, points: { show: points, size: 8, fill: colour("--accent") } },
    ],
  };
}

function draw(holder, values) {
  const old = drawn.get(holder);
  if (old && values[0].length && holder.contains(old.root)) {
    old.setData(values);
    return;
  }
  if (old) old.destroy();
  holder.replaceChildren();
  drawn.set(holder, new uPlot(options(holder, holder.dataset.y.split(",")[0]), values, holder));
}

async function readLoss(holder) {
  const state = (holder.loss ??= { points: new Map(), after: 0, isReading: false });
  if (state.isReading) return;
  state.isReading = true;
  try {
    for (;;) {
      const answer = await fetch(`${holder.dataset.source}?after=${state.after}`, { headers: { Accept: "application/json" } });
      if (!answer.ok) return;
      const page = await answer.json();
      for (const [step, loss] of page.points) state.points.set(step, loss);
      if (page.next === null) break;
      state.after = page.next;
    }
  } finally {
    state.isReading = false;
  }
  const steps = [...state.points.keys()].sort((one, other) => one - other);
  draw(holder, [steps, steps.map((step) => state.points.get(step))]);
}

function drawAll() {
  for (const holder of document.querySelectorAll("[data-chart]")) {
    if (holder.dataset.chart === "loss") {
      if (!holder.loss || holder.dataset.live === "yes" || !holder.isLast) readLoss(holder);
      holder.isLast = holder.dataset.live !== "yes";
    } else if (!drawn.has(holder)) {
      draw(holder, JSON.parse(holder.dataset.points));
    }
  }
}

function redraw() {
  for (const [holder, chart] of drawn) {
    const values = chart.data;
    chart.destroy();
    drawn.delete(holder);
    if (holder.isConnected) draw(holder, values);
  }
}

let resizing;
window.addEventListener("resize", () => {
  clearTimeout(resizing);
  resizing = setTimeout(redraw, 150);
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);

document.addEventListener("htmx:afterSettle", () => { countPicked(); drawAll(); });
document.addEventListener("DOMContentLoaded", () => { countPicked(); drawAll(); });
