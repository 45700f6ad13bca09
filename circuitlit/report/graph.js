// The circuit's graph by Cytoscape.js: what is drawn follows from `view` alone, which the address keeps.
const graph = content("drawing");
const view = {n: Math.min(graph.drawn, graph.source.length), kinds: new Set(graph.kinds), sides: new Set(["both", "a", "b"]), role: "", layer: graph.layers.length ? "0" : "", node: "", pins: [], more: [], groups: structuredClone(graph.groups), open: []};
const number = new Map(graph.nodes.map((name, at) => [name, at]));
const edgesOf = graph.nodes.map(() => []);
graph.source.forEach((from, edge) => { edgesOf[from].push(edge); edgesOf[graph.target[edge]].push(edge); });
const MOST = 1000, NEIGHBOURS = 40;

// Whether an edge is in this circuit, in the other one, or in both.
function sideOf(edge) {
  if (view.layer === "") return graph.own[edge] ? "a" : "";
  const other = graph.layers[view.layer].has[edge];
  return graph.own[edge] ? (other ? "both" : "a") : (other ? "b" : "");
}

function shownEdges() {
  const fits = edge => {
    const side = sideOf(edge);
    return side && (view.layer === "" || view.sides.has(side)) && view.kinds.has(graph.kinds[graph.kind[edge]]) && (view.role === "" || graph.role[edge] === +view.role);
  };
  const found = new Set();
  for (let edge = 0, seen = 0; edge < graph.source.length && seen < view.n; edge++) {
    const side = sideOf(edge);
    seen += side !== "" && (view.layer === "" || view.sides.has(side));
    if (fits(edge)) found.add(edge);
  }
  for (const name of view.more) for (const edge of edgesOf[number.get(name)].filter(fits).slice(0, NEIGHBOURS)) if (found.size < MOST) found.add(edge);
  return [...found];
}

const groupOf = name => Object.keys(view.groups).find(group => view.groups[group].includes(name));
const shut = name => { const group = groupOf(name); return group && !view.open.includes(group) ? "group:" + group : name; };
const label = id => id.startsWith("group:") ? id.slice(6) + " (" + view.groups[id.slice(6)].length + ")" : id;
const titled = id => label(id) + (graph.known[id]?.role ? " " + graph.known[id].role : "");
const shape = name => name[0] === "m" ? "rectangle" : name.includes(".kv") ? "triangle" : name[0] === "a" ? "ellipse" : name.startsWith("group:") ? "round-rectangle" : "diamond";

// Layers upwards; within a layer, nodes stand where those that they are joined with stand.
function places(nodes, edges) {
  const level = name => name.startsWith("group:") ? view.groups[name.slice(6)].map(level).reduce((a, b) => a + b) / view.groups[name.slice(6)].length : graph.level[number.get(name)];
  const rows = new Map();
  for (const name of nodes) { const row = Math.round(level(name)); rows.set(row, [...(rows.get(row) || []), name]); }
  const order = [...rows.keys()].sort((a, b) => a - b), x = new Map(), near = new Map(nodes.map(name => [name, []]));
  for (const edge of edges) { near.get(edge.source).push(edge.target); near.get(edge.target).push(edge.source); }
  const spread = row => row.forEach((name, at) => x.set(name, (at - (row.length - 1) / 2) * 76));
  for (const row of rows.values()) spread(row);
  for (let sweep = 0; sweep < 8; sweep++) for (const key of sweep % 2 ? [...order].reverse() : order) {
    const row = rows.get(key), mean = name => near.get(name).length ? near.get(name).reduce((sum, other) => sum + x.get(other), 0) / near.get(name).length : x.get(name);
    const wanted = new Map(row.map(name => [name, mean(name)]));
    row.sort((a, b) => wanted.get(a) - wanted.get(b));
    spread(row);
    const middle = row.reduce((sum, name) => sum + wanted.get(name), 0) / row.length, room = Math.max(0, 420 - 38 * row.length);
    for (const name of row) x.set(name, x.get(name) + Math.max(-room, Math.min(room, middle)));
  }
  const y = name => -48 * order.indexOf(Math.round(level(name))) + (name.includes(".kv") ? 14 : name[0] === "m" ? -13 : 0);
  // As wide as the page lets it be.
  const xs = [...x.values()], box = document.getElementById("graph"), width = Math.max(...xs) - Math.min(...xs) + 76;
  const wider = Math.max(1, Math.min(2.5, 48 * order.length * box.clientWidth / (1100 * width)));
  return new Map(nodes.map(name => [name, {x: wider * x.get(name), y: y(name)}]));
}

function elements() {
  const merged = new Map();
  for (const edge of shownEdges()) {
    const [source, target] = [shut(graph.nodes[graph.source[edge]]), shut(graph.nodes[graph.target[edge]])];
    if (source === target) continue;
    const kind = graph.kinds[graph.kind[edge]], side = sideOf(edge), key = [source, target, kind, side].join("|");
    const one = merged.get(key) || {id: key, source, target, kind, side, value: 0, count: 0, rank: edge, often: 0, core: false};
    one.value += graph.value[edge]; one.count += 1;
    one.often = Math.max(one.often, graph.often ? graph.often[edge] : 0);
    one.core = one.core || Boolean(graph.core && graph.core[edge]);
    merged.set(key, one);
  }
  const edges = [...merged.values()], names = new Set(edges.flatMap(edge => [edge.source, edge.target]));
  for (const name of [...view.pins, view.node].filter(Boolean)) if (number.has(name) || !view.open.includes(name.slice(6))) names.add(shut(name));
  const links = [];
  for (const [from, heads] of Object.entries(graph.next)) for (const head of heads) {
    const [source, target] = [shut(graph.nodes[from]), shut(graph.nodes[head])];
    if (source !== target && names.has(source) && names.has(target)) links.push({id: "link|" + source + "|" + target, source, target, kind: "link", side: "", value: 0, count: 0});
  }
  const where = places([...names], [...edges, ...links]), largest = Math.max(1e-12, ...edges.map(edge => Math.abs(edge.value)));
  const nodes = [...names].map(id => {
    const group = groupOf(id), classes = [view.pins.some(pin => shut(pin) === id) ? "pinned" : "", id.startsWith("group:") ? "group" : ""].join(" ");
    return {data: {id, label: titled(id), shape: shape(id), size: graph.size[number.get(id)] ?? 26, ...(group && view.open.includes(group) ? {parent: "open:" + group} : {})}, position: where.get(id), classes};
  });
  for (const group of view.open) if (nodes.some(node => node.data.parent === "open:" + group)) nodes.unshift({data: {id: "open:" + group, label: group, shape: "round-rectangle"}, classes: "opened"});
  const opacity = edge => graph.often ? 0.15 + 0.8 * edge.often : 0.3 + 0.6 * Math.sqrt(Math.abs(edge.value) / largest);
  const colour = edge => view.layer === "" ? graph.colours[graph.kinds.indexOf(edge.kind)] : {a: graph.colours[0], b: graph.colours[1], both: tone("--ink")}[edge.side];
  const lines = edges.map(edge => ({data: {...edge, colour: colour(edge), width: (edge.core ? 2.5 : 0.8) + 4.2 * Math.sqrt(Math.abs(edge.value) / largest), opacity: opacity(edge)}, classes: graph.signed && edge.value < 0 ? "lowers" : ""}));
  return [...nodes, ...lines, ...links.map(data => ({data: {...data, colour: tone("--muted"), width: 1, opacity: 0.5}, classes: "link"}))];
}

function look() {
  return [
    {selector: "node[size]", style: {width: "data(size)", height: "data(size)"}},
    {selector: "node", style: {label: "data(label)", shape: "data(shape)", "background-color": tone("--muted"), color: tone("--ink"), "font-size": 12, "text-valign": "center", "text-halign": "right", "text-margin-x": 2, "text-background-color": tone("--paper"), "text-background-opacity": 0.75, "min-zoomed-font-size": 5}},
    {selector: "node.pinned", style: {"border-width": 4, "border-color": tone("--link"), "font-weight": "bold"}},
    {selector: "node.group", style: {"background-color": tone("--link"), "font-weight": "bold"}},
    {selector: "node:child", style: {"background-color": tone("--link")}},
    {selector: "node.opened", style: {"background-opacity": 0.08, "background-color": tone("--link"), "border-width": 1, "border-color": tone("--link"), "text-valign": "top", "text-halign": "center"}},
    {selector: "edge", style: {"curve-style": "haystack", "haystack-radius": 0.25, width: "data(width)", opacity: "data(opacity)", "line-color": "data(colour)"}},
    {selector: "edge.lowers", style: {"line-style": "dashed"}},
    {selector: "edge.link", style: {"line-style": "dotted"}},
    {selector: ".faded", style: {opacity: 0.12}},
    {selector: "node.found", style: {"border-width": 4, "border-color": graph.colours[1]}},
    {selector: "node.chosen", style: {"background-color": graph.colours[3]}},
  ];
}

const cy = cytoscape({container: document.getElementById("graph"), elements: [], style: look(), layout: {name: "preset"}, minZoom: 0.1, maxZoom: 4, textureOnViewport: true, pixelRatio: 1});
// The page scrolls over the graph; with Ctrl the wheel zooms it, and two fingers do.
cy.userZoomingEnabled(matchMedia("(pointer: coarse)").matches);
document.getElementById("graph").addEventListener("wheel", event => cy.userZoomingEnabled(event.ctrlKey || event.metaKey), {capture: true, passive: true});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { cy.style(look()); draw(); });

// Only what differs from what is drawn is changed: with a thousand edges that is what takes the time.
let extent = "";
function draw() {
  const started = performance.now(), now = elements(), box = document.getElementById("graph"), marks = marked(now), added = [];
  const wanted = new Set(now.map(one => one.data.id));
  cy.batch(() => {
    for (const one of now) {
      one.classes = [one.classes, marks(one.data.id)].join(" ").trim();
      const told = JSON.stringify([one.data, one.classes]), there = cy.getElementById(one.data.id);
      if (!there.length) added.push({...one, scratch: {told}});
      else {
        if (there.isNode() && (there.data("parent") || null) !== (one.data.parent || null)) there.move({parent: one.data.parent || null});
        if (there.scratch("told") !== told) there.data(one.data).classes(one.classes).scratch("told", told);
        if (one.position && !there.isParent()) there.position(one.position);
      }
    }
    cy.elements().filter(one => !wanted.has(one.id())).remove();
    cy.add(added);
  });
  const rows = new Set(now.filter(one => one.position).map(one => Math.round(one.position.y / 48))).size, height = Math.min(1100, Math.max(380, 40 * rows + 60)) + "px";
  if (box.style.height !== height) { box.style.height = height; cy.resize(); }
  const size = now.filter(one => one.position).length + height;
  if (size !== extent) { extent = size; fit(now); }
  graph.milliseconds = performance.now() - started;
}

// As the library's own, without asking every edge for its bounds.
function fit(now) {
  const all = now.filter(one => one.position).map(one => one.position), [xs, ys] = [all.map(at => at.x), all.map(at => at.y)];
  if (!all.length) return;
  const [left, right, top, bottom] = [Math.min(...xs) - 30, Math.max(...xs) + 70, Math.min(...ys) - 30, Math.max(...ys) + 30];
  const zoom = Math.min(1.6, cy.width() / (right - left), cy.height() / (bottom - top));
  cy.viewport({zoom, pan: {x: cy.width() / 2 - zoom * (left + right) / 2, y: cy.height() / 2 - zoom * (top + bottom) / 2}});
}

// Paths from the chosen node to the logits stand out; what is found is framed.
function marked(now) {
  const words = document.getElementById("search").value.trim().toLowerCase(), text = document.getElementById("paths-text");
  const found = id => words && !id.includes("|") && matches(id, words) ? " found" : "", node = view.node && shut(view.node);
  const lines = now.filter(one => one.data.source).map(one => one.data), ahead = reach(lines, node, "source", "target"), behind = reach(lines, "logits", "target", "source");
  if (!node || !now.some(one => one.data.id === node)) { text.textContent = "Click or find a node to see its paths to the logits; Escape clears."; return found; }
  const on = new Set([node]);
  let count = 0;
  for (const line of lines) if (ahead.has(line.source) && behind.has(line.target)) { for (const id of [line.id, line.source, line.target]) on.add(id); count += line.kind !== "link"; }
  text.textContent = count ? count.toLocaleString("en") + " of the edges shown lie on paths from " + label(node) + " to the logits." : "No path from " + label(node) + " to the logits among the edges shown; show more.";
  return id => (id === node ? "chosen" : on.has(id) || id.startsWith("open:") ? "" : "faded") + found(id);
}

function reach(lines, start, from, to) {
  const leaving = new Map(), seen = new Set([start]), queue = [start];
  for (const line of lines) leaving.set(line[from], [...(leaving.get(line[from]) || []), line[to]]);
  while (queue.length) for (const next of leaving.get(queue.pop()) || []) if (!seen.has(next)) { seen.add(next); queue.push(next); }
  return seen;
}

const matches = (id, words) => id.toLowerCase().includes(words) || (graph.known[id]?.role || "").toLowerCase().includes(words) || (view.groups[id.slice(6)] || []).some(name => name === words);
