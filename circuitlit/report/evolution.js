// The slider through the mask snapshots, its play button, and the stages that lead to a snapshot.
(() => {
  const evolution = content("evolution");
  const [timeline, kept, flow] = ["timeline", "kept", "flow"].map(name => document.getElementById("plot-" + name));
  const [slider, play, text] = ["snapshot", "play", "snapshot-text"].map(id => document.getElementById(id));
  const bands = [...document.querySelectorAll("[data-snapshot]")];
  const last = evolution.steps.length - 1;
  const layers = evolution.graph.n_layers;
  let shapes = [], timer = null, waiting = false;

  function draw() {
    const at = +slider.value, step = evolution.steps[at];
    const share = value => value === null ? "-" : value.toFixed(2);
    text.textContent = "step " + step.toLocaleString("en") + ", overlap with the final circuit " + share(evolution.overlap_final[at]) + ", " + (evolution.churn[at] === null ? "first" : evolution.churn[at].toLocaleString("en") + " edges changed");
    slider.setAttribute("aria-valuetext", text.textContent);
    for (const band of bands) {
      const inside = step >= +band.dataset.first && (step < +band.dataset.last || at === last && step === +band.dataset.last);
      band.setAttribute("aria-pressed", inside);
    }
    const cursor = {type: "line", x0: step, x1: step, yref: "paper", y0: 0, y1: 1, line: {color: tone("--ink"), width: 2}, name: "cursor"};
    Plotly.relayout(timeline, {shapes: [...shapes, cursor]});
    const heights = kept.data.map(bar => bar.meta === "logits" ? [evolution.kept.logits[at]] : evolution.kept[bar.meta][at]);
    Plotly.restyle(kept, {y: heights});
    const cells = Array.from({length: layers + 1}, () => Array(layers + 1).fill(null));
    evolution.flow.pairs.forEach(([writer, reader], pair) => { cells[writer][reader] = evolution.flow.counts[at][pair] || null; });
    Plotly.restyle(flow, {z: [cells]});
  }

  function soon() {
    if (!waiting) requestAnimationFrame(() => { waiting = false; draw(); });
    waiting = true;
  }

  function stop() {
    clearInterval(timer);
    timer = null;
    play.textContent = "Play";
    play.setAttribute("aria-pressed", "false");
  }

  play.addEventListener("click", () => {
    if (timer !== null) return stop();
    if (+slider.value === last) slider.value = 0;
    play.textContent = "Pause";
    play.setAttribute("aria-pressed", "true");
    soon();
    timer = setInterval(() => {
      slider.value = +slider.value + 1;
      soon();
      if (+slider.value === last) stop();
    }, Math.max(120, Math.min(600, 12000 / last)));
  });
  slider.addEventListener("input", () => { stop(); soon(); });
  for (const band of bands) band.addEventListener("click", () => { stop(); slider.value = band.dataset.snapshot; soon(); });
  drawn.then(() => {
    shapes = timeline.layout.shapes || [];
    timeline.on("plotly_click", event => {
      const at = evolution.steps.indexOf(event.points[0].x);
      if (at >= 0) { stop(); slider.value = at; soon(); }
    });
    draw();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", soon);
})();
