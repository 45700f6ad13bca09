// The circuit's graph: filter by strength, kind and role; paths from a node to the logits.
(() => {
  const graph = content("drawing");
  const plot = document.getElementById("plot-circuit");
  const [strength, picked, role, clear] = ["strength", "node", "role", "clear"].map(id => document.getElementById(id));
  const total = graph.source.length;
  const logits = graph.nodes.indexOf("logits");
  const bins = [[0.1, 0.95, 2], [0.4, 0.55, 1.2], [1, 0.28, 0.9]];
  const toCount = value => Math.max(Math.min(1, total), Math.round(total ** (value / 100)));
  const toValue = count => total > 1 ? Math.round(100 * Math.log(count) / Math.log(total)) : 100;
  let first = true;

  // A head's own input shapes what it writes; a key/value head leads on to the heads that share it.
  const onwards = node => graph.next[node] || [node];

  function shownEdges() {
    const kinds = new Set([...document.querySelectorAll("[data-kind]:checked")].map(box => graph.kinds.indexOf(box.dataset.kind)));
    const count = first ? graph.drawn : toCount(+strength.value);
    const all = [...Array(count).keys()];
    return all.filter(edge => kinds.has(graph.kind[edge]) && (!role || role.value === "" || graph.role[edge] === +role.value));
  }

  function reach(starts, edges, from, to, more) {
    const leaving = new Map();
    for (const edge of edges) leaving.set(from(edge), [...(leaving.get(from(edge)) || []), edge]);
    const seen = new Set(starts), queue = [...starts], used = new Set();
    while (queue.length) for (const edge of leaving.get(queue.pop()) || []) {
      used.add(edge);
      for (const node of more(to(edge))) if (!seen.has(node)) { seen.add(node); queue.push(node); }
    }
    return used;
  }

  function paths(node, edges) {
    const source = edge => graph.source[edge], target = edge => graph.target[edge];
    const backwards = new Map(graph.nodes.map((_, from) => [from, [from]]));
    for (const [from, heads] of Object.entries(graph.next)) for (const head of heads) backwards.get(head).push(+from);
    const ahead = reach([...new Set([node, ...onwards(node)])], edges, source, target, onwards);
    const behind = reach([logits], edges, target, source, reader => backwards.get(reader));
    return edges.filter(edge => ahead.has(edge) && behind.has(edge));
  }

  function lines(edges, kind, opacity, width) {
    const x = [], y = [];
    const parts = edges.length > 150 ? 8 : 12;
    for (const edge of edges) {
      const [from, to] = [graph.source[edge], graph.target[edge]];
      const [[x0, y0], [x1, y1]] = [graph.places[from], graph.places[to]];
      const beside = graph.nodes[from][0] === "m" && graph.nodes[to][0] === "m";
      const bow = (beside ? 0.09 : 0.025) * (y1 - y0) * (x1 >= x0 ? 1 : -1);
      for (let part = 0; part <= parts; part++) {
        const t = part / parts;
        x.push(x0 + t * (x1 - x0) + 4 * bow * t * (1 - t));
        y.push(y0 + t * (y1 - y0));
      }
      x.push(null); y.push(null);
    }
    return {type: "scatter", mode: "lines", x, y, line: {color: graph.colours[kind], width}, opacity, hoverinfo: "skip", meta: graph.kinds[kind], name: graph.kinds[kind]};
  }

  function byKind(edges, opacity, width) {
    return graph.kinds.map((_, kind) => [edges.filter(edge => graph.kind[edge] === kind), kind]).filter(([part]) => part.length).map(([part, kind]) => lines(part, kind, opacity, width));
  }

  function draw() {
    const edges = shownEdges();
    const node = picked.value === "" ? null : +picked.value;
    const count = first ? graph.drawn : toCount(+strength.value);
    const weakest = total ? graph.score[count - 1].toPrecision(3) : "-";
    const text = count.toLocaleString("en") + " of " + graph.n_edges.toLocaleString("en") + " edges, down to score " + weakest;
    document.getElementById("strength-text").textContent = text;
    strength.setAttribute("aria-valuetext", text);
    clear.disabled = node === null;
    let traces = [];
    if (node === null) {
      let start = 0;
      for (const [end, opacity, width] of bins) {
        const stop = Math.ceil(end * edges.length);
        traces.unshift(...byKind(edges.slice(start, stop), opacity, width));
        start = stop;
      }
      document.getElementById("paths-text").textContent = "Click a node, or choose one, to see its paths to the logits; Escape clears.";
    } else {
      const on = paths(node, edges), chosen = new Set(on);
      traces = [...byKind(edges.filter(edge => !chosen.has(edge)), 0.06, 0.8), ...byKind(on, on.length > 200 ? 0.55 : 0.9, 1.6)];
      document.getElementById("paths-text").textContent = on.length ? on.length.toLocaleString("en") + " of the edges shown lie on paths from " + graph.nodes[node] + " to the logits." : "No path from " + graph.nodes[node] + " to the logits among the edges shown; show more.";
    }
    const kept = plot.data.filter(trace => !graph.kinds.includes(trace.meta));
    return Plotly.react(plot, [...traces, ...kept], plot.layout, settings);
  }

  // Moving a slider draws once a frame at most.
  let waiting = false;
  function soon() {
    if (!waiting) requestAnimationFrame(() => { waiting = false; draw(); });
    waiting = true;
  }

  const used = new Set([...graph.source, ...graph.target]);
  used.delete(logits);
  graph.nodes.forEach((name, number) => { if (used.has(number)) picked.add(new Option(name, number)); });
  strength.value = toValue(graph.drawn);
  strength.addEventListener("input", () => { first = false; soon(); });
  picked.addEventListener("change", soon);
  if (role) role.addEventListener("change", soon);
  for (const box of document.querySelectorAll("[data-kind]")) box.addEventListener("change", soon);
  clear.addEventListener("click", () => { picked.value = ""; soon(); picked.focus(); });
  document.addEventListener("keydown", event => { if (event.key === "Escape" && picked.value !== "") { picked.value = ""; soon(); } });
  drawn.then(() => {
    plot.on("plotly_click", event => {
      const point = event.points.find(point => point.data.name === "nodes");
      if (point && used.has(point.pointIndex)) { picked.value = picked.value === String(point.pointIndex) ? "" : point.pointIndex; soon(); }
    });
    draw();
  });
})();
