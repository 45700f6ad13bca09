// Everything that changes the graph's view: slider, search, clicks, pins, groups, and the page's address.
(() => {
  const byId = id => document.getElementById(id);
  const [strength, search, role, layer, details] = ["strength", "search", "role", "layer", "details"].map(byId);
  const total = Math.min(graph.source.length, MOST);
  const toCount = value => Math.max(Math.min(1, total), Math.round(total ** (value / 100)));
  const toValue = count => total > 1 ? Math.round(100 * Math.log(count) / Math.log(total)) : 100;
  const known = name => number.has(name);
  const list = text => (text || "").split(",").filter(known);

  function toAddress() {
    const parts = new URLSearchParams({n: view.n});
    if (view.kinds.size < graph.kinds.length) parts.set("kinds", [...view.kinds].join(","));
    if (view.sides.size < 3) parts.set("sides", [...view.sides].join(","));
    for (const key of ["role", "node"]) if (view[key]) parts.set(key, view[key]);
    if (graph.layers.length) parts.set("layer", view.layer);
    for (const key of ["pins", "more", "open"]) if (view[key].length) parts.set(key, view[key].join(","));
    if (Object.keys(view.groups).length || Object.keys(graph.groups).length) parts.set("groups", JSON.stringify(view.groups));
    if (search.value) parts.set("find", search.value);
    history.replaceState(null, "", "#graph?" + parts);
  }

  function fromAddress() {
    if (!location.hash.startsWith("#graph?")) return;
    const parts = new URLSearchParams(location.hash.slice(7));
    view.n = Math.max(0, Math.min(total, Math.round(+parts.get("n")) || view.n));
    if (parts.has("kinds")) view.kinds = new Set(parts.get("kinds").split(",").filter(kind => graph.kinds.includes(kind)));
    if (parts.has("sides")) view.sides = new Set(parts.get("sides").split(",").filter(side => ["both", "a", "b"].includes(side)));
    view.role = graph.roles[parts.get("role")] ? parts.get("role") : "";
    if (parts.has("layer")) view.layer = graph.layers[parts.get("layer")] ? parts.get("layer") : "";
    try { view.groups = proper(JSON.parse(parts.get("groups"))); } catch { view.groups = structuredClone(graph.groups); }
    view.node = known(parts.get("node")) || (parts.get("node") || "").slice(6) in view.groups ? parts.get("node") : "";
    [view.pins, view.more] = [list(parts.get("pins")), list(parts.get("more"))];
    view.open = (parts.get("open") || "").split(",").filter(group => group in view.groups);
    search.value = parts.get("find") || "";
    byId("circuit").scrollIntoView();
  }

  // A group holds nodes that exist, and no node is in two of them.
  function proper(groups) {
    const taken = new Set(), made = {};
    for (const [name, nodes] of Object.entries(groups || structuredClone(graph.groups))) {
      made[name] = nodes.filter(node => known(node) && !taken.has(node) && taken.add(node));
      if (!made[name].length) delete made[name];
    }
    return made;
  }

  function button(text, pressed, act, title) {
    const made = document.createElement("button");
    Object.assign(made, {type: "button", textContent: text, title: title || ""});
    if (pressed !== null) made.setAttribute("aria-pressed", pressed);
    made.addEventListener("click", act);
    return made;
  }

  function controls() {
    for (const box of document.querySelectorAll("[data-kind]")) box.checked = view.kinds.has(box.dataset.kind);
    for (const box of document.querySelectorAll("[data-side]")) box.checked = view.sides.has(box.dataset.side);
    if (role) role.value = view.role;
    if (layer) layer.value = view.layer;
    if (toCount(+strength.value) !== view.n) strength.value = toValue(view.n);
    const drawn = cy.edges().not(".link").length;
    const text = view.n.toLocaleString("en") + " of " + graph.n_edges.toLocaleString("en") + " edges" + (drawn === view.n ? "" : ", " + drawn.toLocaleString("en") + " drawn");
    byId("strength-text").textContent = text;
    strength.setAttribute("aria-valuetext", text);
    const chosen = known(view.node);
    for (const [id, held] of [["pin", view.pins], ["expand", view.more]]) {
      byId(id).disabled = !chosen;
      byId(id).setAttribute("aria-pressed", chosen && held.includes(view.node));
    }
    byId("clear").disabled = !view.node && !search.value && !view.pins.length && !view.more.length;
    byId("pins").hidden = !view.pins.length;
    byId("pinned").replaceChildren(...view.pins.map(name => button(name + " ×", null, () => change(() => { view.pins = view.pins.filter(pin => pin !== name); }), "unpin")));
    byId("group").disabled = !byId("group-name").value.trim();
    byId("groups").hidden = !Object.keys(view.groups).length;
    byId("grouped").replaceChildren(...Object.keys(view.groups).flatMap(name => [
      button(name + " (" + view.groups[name].length + ")", view.open.includes(name), () => change(() => { if (view.node === "group:" + name) view.node = ""; view.open = view.open.includes(name) ? view.open.filter(one => one !== name) : [...view.open, name]; }), "open or shut: " + view.groups[name].join(" ")),
      button("×", null, () => change(() => { delete view.groups[name]; view.open = view.open.filter(one => one !== name); if (view.node === "group:" + name) view.node = ""; }), "take the group " + name + " apart"),
    ]));
    tell();
  }

  // What is known of the chosen node, and its strongest edges, drawn or not.
  function tell() {
    details.hidden = !view.node;
    if (!view.node) return;
    const names = view.node.startsWith("group:") ? view.groups[view.node.slice(6)] : [view.node], inside = new Set(names.map(name => number.get(name)));
    const title = document.createElement("h3"), facts = document.createElement("p"), told = graph.known[view.node];
    title.textContent = label(view.node);
    facts.textContent = told ? told.text : names.length > 1 ? names.join(" ") : "";
    const parts = [title, facts];
    for (const [words, inward] of [["from", true], ["to", false]]) {
      const all = [...new Set(names.flatMap(name => edgesOf[number.get(name)]))].filter(edge => sideOf(edge) && inside.has(inward ? graph.target[edge] : graph.source[edge]) && !inside.has(inward ? graph.source[edge] : graph.target[edge]));
      const made = document.createElement("ul");
      for (const edge of all.sort((a, b) => a - b).slice(0, 5)) {
        const item = document.createElement("li"), other = graph.nodes[inward ? graph.source[edge] : graph.target[edge]];
        item.append(button(other, null, () => change(() => { view.node = other; })), " " + graph.kinds[graph.kind[edge]] + " " + graph.value[edge].toPrecision(3));
        made.append(item);
      }
      const head = document.createElement("h4");
      head.textContent = words + " " + all.length + (all.length > 5 ? ", the strongest:" : "");
      parts.push(head, made);
    }
    const row = byId("node-" + view.node);
    if (row) parts.push(button("Its row above", null, () => row.scrollIntoView({block: "center"})));
    details.replaceChildren(...parts);
  }

  let waiting = false;
  function change(act) {
    act();
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => { waiting = false; draw(); controls(); toAddress(); });
  }

  const toggle = (key, name) => { view[key] = view[key].includes(name) ? view[key].filter(one => one !== name) : [...view[key], name]; };
  const choose = name => change(() => { view.node = view.node === name ? "" : name; });
  byId("nodes").append(...graph.nodes.filter((_, at) => edgesOf[at].length).map(name => new Option(graph.known[name]?.role || "", name)));
  strength.addEventListener("input", () => change(() => { view.n = toCount(+strength.value); }));
  for (const box of document.querySelectorAll("[data-kind]")) box.addEventListener("change", () => change(() => { box.checked ? view.kinds.add(box.dataset.kind) : view.kinds.delete(box.dataset.kind); }));
  for (const box of document.querySelectorAll("[data-side]")) box.addEventListener("change", () => change(() => { box.checked ? view.sides.add(box.dataset.side) : view.sides.delete(box.dataset.side); }));
  if (role) role.addEventListener("change", () => change(() => { view.role = role.value; }));
  if (layer) layer.addEventListener("change", () => change(() => { view.layer = layer.value; }));
  // A name chooses its node even where that is not drawn yet; anything else frames what it is part of.
  search.addEventListener("input", () => change(() => {
    const name = search.value.trim();
    if (known(name) && edgesOf[number.get(name)].length) { view.node = name; if (!cy.getElementById(shut(name)).length && !view.more.includes(name)) view.more.push(name); }
  }));
  byId("pin").addEventListener("click", () => change(() => toggle("pins", view.node)));
  byId("expand").addEventListener("click", () => change(() => toggle("more", view.node)));
  byId("fit").addEventListener("click", () => fit(elements()));
  const clear = () => change(() => { Object.assign(view, {node: "", pins: [], more: []}); search.value = ""; });
  byId("clear").addEventListener("click", clear);
  document.addEventListener("keydown", event => { if (event.key === "Escape" && view.node) change(() => { view.node = ""; }); });
  byId("group-name").addEventListener("input", () => { byId("group").disabled = !byId("group-name").value.trim(); });
  byId("group").addEventListener("click", () => change(() => {
    const name = byId("group-name").value.trim().replaceAll(",", " ");
    for (const group of Object.keys(view.groups)) view.groups[group] = view.groups[group].filter(node => !view.pins.includes(node));
    view.groups = proper({...view.groups, [name]: [...(view.groups[name] || []), ...view.pins]});
    Object.assign(view, {pins: [], node: "group:" + name});
    byId("group-name").value = "";
  }));
  byId("save-groups").addEventListener("click", () => save("groups.json", JSON.stringify(view.groups, null, 1)));
  cy.on("tap", "node", event => { if (!event.target.isParent()) choose(event.target.id()); });
  window.addEventListener("hashchange", () => { fromAddress(); draw(); controls(); });
  view.groups = proper(view.groups);
  fromAddress();
  draw();
  controls();
})();
