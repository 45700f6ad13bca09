// Attention patterns: a small one in each row, and on a click those of all examples with their tokens.
(() => {
  const found = content("looks"), place = document.getElementById("pattern");
  const shade = share => "color-mix(in srgb, var(--link) " + Math.round(100 * share) + "%, transparent)";
  function paint(canvas, pattern) {
    const context = canvas.getContext("2d"), size = canvas.width / pattern.length;
    context.clearRect(0, 0, canvas.width, canvas.width);
    context.fillStyle = tone("--link");
    pattern.forEach((line, query) => line.forEach((share, key) => { context.globalAlpha = share; context.fillRect(key * size, query * size, size, size); }));
  }
  function prompt(example, look, row) {
    const line = document.createElement("p"), from = look.places[row];
    line.className = "prompt";
    found.tokens[row].forEach((token, at) => {
      const share = at <= from ? look.patterns[row][from][at] : 0, part = document.createElement("span");
      part.textContent = token;
      part.className = "token has-share" + (at === from ? " from" : "");
      part.style.background = shade(share);
      part.dataset.role = share.toFixed(2);
      part.tabIndex = share > 0.05 ? 0 : -1;
      line.append(part);
    });
    return line;
  }
  function show(button) {
    const look = found.looks[button.dataset.pattern], open = button.getAttribute("aria-expanded") === "true";
    for (const other of document.querySelectorAll("[data-pattern]")) other.setAttribute("aria-expanded", "false");
    place.hidden = open;
    if (open) return;
    button.setAttribute("aria-expanded", "true");
    const title = document.createElement("h3");
    title.textContent = look.name + ": attention from the framed token";
    place.replaceChildren(title);
    look.patterns.forEach((pattern, row) => {
      const box = document.createElement("div"), canvas = document.createElement("canvas"), side = document.createElement("div"), says = document.createElement("p");
      box.className = "look";
      canvas.width = canvas.height = 180;
      says.className = "note";
      const quoted = tokens => tokens.map(token => "“" + token + "”").join(" ");
      says.textContent = "makes likelier " + quoted(look.writes[row]) + ", less likely " + quoted(look.lowers[row]);
      side.append(prompt(row, look, row), says);
      box.append(canvas, side);
      place.append(box);
      paint(canvas, pattern);
    });
    place.scrollIntoView({block: "nearest"});
  }
  const every = () => { for (const button of document.querySelectorAll("[data-pattern]")) paint(button.firstChild, found.looks[button.dataset.pattern].patterns[0]); };
  for (const button of document.querySelectorAll("[data-pattern]")) button.addEventListener("click", () => show(button));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", every);
  every();
})();
