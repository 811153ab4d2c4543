// What the page shows. Names and titles are a stranger's text: they only ever become text nodes, never markup.

const SVG = "http://www.w3.org/2000/svg";
const WHOLE = new Intl.NumberFormat("en");
const MILLISECONDS = new Intl.NumberFormat("en", { minimumFractionDigits: 3, maximumFractionDigits: 3 });
const VARIANTS = { none: "without DVIB", constant: "DVIB, constant noise", adaptive: "DVIB, adaptive noise" };
const CLAIMS = {
  transplant: "A fresh baseline that is given this model’s tensors exports to the same bytes.",
  blanked: "With the learned tensors set to zero, an independent baseline exports to the same bytes.",
  architecture: "Operators, wiring, shapes, parameters and FLOPs equal that baseline’s, and nothing is random.",
  parity: "Every way of scoring gives every user the trained model’s scores and best items.",
};

export const whole = (number) => WHOLE.format(number);
export const milliseconds = (number) => `${MILLISECONDS.format(number)} ms`;
export const described = (model) => `${model.model}, ${VARIANTS[model.variant] ?? model.variant}`;

/** Make an element. Attributes are set by name; children are nodes or text. */
export function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

/** Text that somebody else wrote: whichever way it is written, it turns nothing around it. */
const foreign = (text, attributes = {}) => element("bdi", { dir: "auto", ...attributes }, text);

const unseen = (text) => element("span", { class: "unseen" }, text);

function itemName(item, categories) {
  const under = element("span", { class: "sub" }, "id ", foreign(item.item_id));
  for (const category of categories?.get(item.item_id) ?? []) under.append(" · ", foreign(category));
  return [foreign(item.title ?? "(no title)", { class: "title" }), under];
}

export function historyItems(items, categories) {
  return items.map((item) => element("li", {}, ...itemName(item, categories)));
}

function sign(symbol, words, kind) {
  return [element("span", { "aria-hidden": "true", class: kind }, symbol), unseen(words)];
}

function standing(here, there, side) {
  if (there === undefined) return side === "left" ? sign("–", "not on the right list", "") : sign("new", "not on the left list", "up");
  if (side === "left") return [String(there)];
  if (here === there) return sign("=", "same place", "");
  const places = Math.abs(there - here);
  const said = `${places} ${places === 1 ? "place" : "places"} ${here < there ? "higher" : "lower"} than on the left`;
  return here < there ? sign(`▲ ${places}`, said, "up") : sign(`▼ ${places}`, said, "down");
}

const SOURCES = {
  popular: "This model does not know the user. These are the most popular items; the score counts training interactions.",
  history: "Ranked from the items that were sent along.",
};

/** Fill the panel of one model's answer; `other` is the list beside it, or null. */
export function answerPanel(panel, side, model, answer, ms, categories, other) {
  const places = new Map((other ?? []).map((item, place) => [item.item_id, place + 1]));
  const head = [["#", "place"], ["Item", ""], ["Score", "number"]];
  if (other) head.push([side === "left" ? "Right" : "Move", "number"]);
  const rows = answer.items.map((item, index) => {
    const place = index + 1;
    const found = places.get(item.item_id);
    const cells = [
      element("td", { class: "place" }, String(place)),
      element("td", {}, ...itemName(item, categories)),
      element("td", { class: "number" }, answer.source === "popular" ? whole(item.score) : item.score.toFixed(3)),
    ];
    if (other) cells.push(element("td", { class: "number" }, ...standing(place, found, side)));
    return element("tr", other && found === undefined ? { class: "only" } : {}, ...cells);
  });
  const columns = head.map(([text, kind]) => element("th", { scope: "col", class: kind }, text));
  const timed = ms === null ? "" : `, answered in ${milliseconds(ms)}`;
  panel.replaceChildren(
    element("h2", { id: `${side}-title` }, foreign(model.name)),
    element("p", { class: "note" }, foreign(described(model)), ` on `, foreign(model.dataset.name)),
    ...(SOURCES[answer.source] ? [element("p", { class: "said" }, SOURCES[answer.source])] : []),
    element(
      "table",
      {},
      element("caption", {}, `${answer.items.length} ${answer.items.length === 1 ? "item" : "items"}${timed}`),
      element("thead", {}, element("tr", {}, ...columns)),
      element("tbody", {}, ...rows),
    ),
  );
}

/** The value that a share of sorted values does not exceed. */
export const quantile = (sorted, share) => sorted[Math.max(0, Math.ceil(share * sorted.length) - 1)];

function shape(name, attributes, ...children) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

/** Round numbers between two others, some three a decade. */
function ticks(least, most) {
  const found = [];
  for (let decade = 10 ** Math.floor(Math.log10(least)); decade <= most; decade *= 10) {
    found.push(...[1, 2, 5].map((part) => Number((part * decade).toPrecision(1))));
  }
  return found.filter((tick) => tick >= least && tick <= most);
}

/** Draw the share of calls that took at most so long, one curve per series of {name, side, sorted}, over a log scale. */
export function drawCurves(place, series) {
  const shown = series.filter(({ sorted }) => sorted.length);
  if (!shown.length) return place.replaceChildren();
  const [width, height, left, right, top, bottom] = [Math.max(280, place.clientWidth), 260, 46, 12, 14, 40];
  const least = 0.8 * Math.max(1e-4, Math.min(...shown.map(({ sorted }) => sorted[0])));
  const most = 1.25 * Math.max(2 * least, ...shown.map(({ sorted }) => sorted.at(-1)));
  const x = (ms) => left + (Math.log(Math.max(ms, least) / least) / Math.log(most / least)) * (width - left - right);
  const y = (share) => height - bottom - share * (height - top - bottom);
  const said = shown.map(({ name, sorted }) => `${name}: half within ${milliseconds(quantile(sorted, 0.5))}`).join("; ");
  const drawing = shape("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `Share of calls by time. ${said}.` });
  for (const share of [0, 0.25, 0.5, 0.75, 1]) {
    drawing.append(
      shape("line", { class: share ? "grid" : "axis", x1: left, x2: width - right, y1: y(share), y2: y(share) }),
      shape("text", { x: left - 8, y: y(share) + 4, "text-anchor": "end" }, `${100 * share}%`),
    );
  }
  for (const tick of ticks(least, most)) {
    drawing.append(
      shape("line", { class: "axis", x1: x(tick), x2: x(tick), y1: y(0), y2: y(0) + 5 }),
      shape("text", { x: x(tick), y: y(0) + 19, "text-anchor": "middle" }, String(tick)),
    );
  }
  drawing.append(shape("text", { x: width - right, y: height - 4, "text-anchor": "end" }, "milliseconds in the service, log scale"));
  for (const { side, sorted } of shown) {
    const path = [`M${left} ${y(0)}`];
    sorted.forEach((ms, index) => path.push(`H${x(ms).toFixed(1)}V${y((index + 1) / sorted.length).toFixed(1)}`));
    drawing.append(shape("path", { class: `curve ${side}-curve`, d: `${path.join("")}H${width - right}` }));
  }
  // Named in the corner that curves leave free, below their upper ends.
  shown.forEach(({ name, side }, index) => {
    const label = [...name].length > 30 ? `${[...name].slice(0, 29).join("")}…` : name;
    const at = y(0) - 14 - 20 * (shown.length - 1 - index);
    drawing.append(
      shape("path", { class: `curve ${side}-curve`, d: `M${width - right - 34} ${at - 4}h34` }),
      shape("text", { class: `${side}-name`, x: width - right - 42, y: at, "text-anchor": "end" }, label),
    );
  });
  return place.replaceChildren(drawing);
}

export function costTable(series) {
  const head = ["Model", "Calls", "Median", "95 %", "99 %, ms"].map((text, index) =>
    element("th", { scope: "col", class: index ? "number" : "" }, text));
  const rows = series.filter(({ sorted }) => sorted.length).map(({ name, sorted }) =>
    element(
      "tr",
      {},
      element("th", { scope: "row" }, foreign(name)),
      element("td", { class: "number" }, whole(sorted.length)),
      ...[0.5, 0.95, 0.99].map((share) => element("td", { class: "number" }, MILLISECONDS.format(quantile(sorted, share)))),
    ));
  return element(
    "table",
    {},
    element("caption", { class: "unseen" }, "Milliseconds in the service, by model"),
    element("thead", {}, element("tr", {}, ...head)),
    element("tbody", {}, ...rows),
  );
}

function verdict(certificate) {
  const proofs = Object.entries(certificate?.proofs ?? {});
  if (!proofs.length) return ["This certificate proves nothing.", ""];
  const failed = proofs.filter(([, holds]) => holds !== true).map(([name]) => name);
  if (failed.length) return [`Not proven: ${failed.join(", ")} ${failed.length === 1 ? "does" : "do"} not hold.`, "bad"];
  return [
    certificate.variant === "none"
      ? "Proven: what answers is the plain baseline, nothing more."
      : "Proven: DVIB adds nothing to what answers. This is a baseline with other weights.",
    "good",
  ];
}

const total = (counts) => Object.values(counts ?? {}).reduce((sum, count) => sum + count, 0);
const count = (number) => element("td", { class: "number" }, Number.isFinite(number) ? whole(number) : "–");

/** What was stripped, what is left, and what a baseline has that was never wrapped. */
function balance({ removed, exported, independent }) {
  const rows = [
    ["Learned parameters", (graph) => graph.parameters],
    ["FLOPs for each user", (graph) => graph.flops_per_user],
    ["Steps of the graph", (graph) => total(graph.operators)],
    ["Kinds of steps that draw noise", (graph) => Object.keys(graph.random_operators ?? {}).length],
  ].map(([name, of]) => {
    const counts = [removed, exported, independent].map((graph) => count(graph ? of(graph) : NaN));
    return element("tr", {}, element("th", { scope: "row" }, name), ...counts);
  });
  const head = ["", "Stripped", "Left", "A baseline"].map((text) => element(text ? "th" : "td", text ? { scope: "col", class: "number" } : {}, text));
  return element(
    "table",
    { class: "balance" },
    element("caption", {}, "What was stripped after training, and what is left beside a baseline that was never wrapped"),
    element("thead", {}, element("tr", {}, ...head)),
    element("tbody", {}, ...rows),
  );
}

/** What a certificate says, in words; `link` is its address, null where a key would be needed to follow it. */
export function proofCard(side, model, text, link) {
  let certificate = null;
  try {
    certificate = JSON.parse(text);
  } catch {
    // Shown as it came, with the verdict that it proves nothing.
  }
  const [said, kind] = verdict(certificate);
  const claims = Object.entries(certificate?.proofs ?? {}).map(([name, holds]) => {
    const mark = element("strong", { class: holds === true ? "holds" : "fails" }, holds === true ? "✓ holds" : "✗ does not hold");
    return element("li", {}, mark, " · ", foreign(CLAIMS[name] ?? name));
  });
  const full = element("pre", { tabindex: "0", role: "region", "aria-label": `Certificate of ${model.name}` });
  full.textContent = certificate === null ? text : JSON.stringify(certificate, null, 2);
  return element(
    "article",
    { class: `proof ${side}` },
    element("h3", {}, foreign(model.name)),
    element("p", { class: `verdict ${kind}` }, said),
    ...(claims.length ? [element("ul", {}, ...claims)] : []),
    ...(certificate?.removed || certificate?.exported ? [balance(certificate)] : []),
    element("details", {}, element("summary", {}, "The full certificate"), full),
    ...(link ? [element("p", { class: "note" }, element("a", { href: link }, "as its own page"))] : []),
  );
}
