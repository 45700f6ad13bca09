// Draws every figure of the page, in the page's colours; buttons that save what the page holds.
const tone = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
function colours(layout) {
  const update = {"font.color": tone("--ink"), "modebar.bgcolor": "rgba(0,0,0,0)", "modebar.color": tone("--muted"), "modebar.activecolor": tone("--ink"), "hoverlabel.bgcolor": tone("--panel"), "hoverlabel.bordercolor": tone("--muted"), "hoverlabel.font.color": tone("--ink")};
  for (const axis of Object.keys(layout).filter(key => /^[xy]axis/.test(key))) update[axis + ".gridcolor"] = tone("--line");
  return update;
}
const content = id => JSON.parse(document.getElementById(id).textContent);
const settings = {responsive: true, displaylogo: false, modeBarButtons: [["zoomIn2d", "zoomOut2d", "resetScale2d", "toImage"]]};
const plots = [...document.querySelectorAll(".plot")];
const drawn = Promise.all(plots.map(plot => {
  const figure = content(plot.id.replace("plot-", "figure-"));
  return Plotly.newPlot(plot, figure.data, figure.layout, settings).then(() => Plotly.relayout(plot, colours(plot.layout)));
}));
drawn.then(() => { document.body.dataset.drawn = "true"; });
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => plots.forEach(plot => Plotly.relayout(plot, colours(plot.layout))));
function save(name, text) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], {type: "application/json"}));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}
for (const button of document.querySelectorAll("[data-download]")) button.addEventListener("click", () => save(button.dataset.download, document.getElementById("download-" + button.dataset.download).textContent));
