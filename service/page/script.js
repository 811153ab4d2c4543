// What the page does: it asks the service, as any other client would, and hands the answers to the panels.

import { answerPanel, costTable, drawCurves, element, historyItems, milliseconds, proofCard, quantile, whole } from "./panels.js";

const RUN = 100;
const SHOWN_HISTORY = 50;
const LONG = 4000; // characters of an address from which on another one is begun
const at = (id) => document.getElementById(id);
const sides = ["left", "right"];

let key = ""; // in memory only
let models = [];
let asked = 0; // counts questions: an answer to an earlier one is not shown
let running = false;
let current = null; // {user, chosen}, of what is shown
const times = new Map(); // model name to milliseconds
const certificates = new Map();

/** Something that the reader is told as a sentence. */
class Failure extends Error {
  constructor(sentence, status = 0) {
    super(sentence);
    this.status = status;
  }
}

async function ask(path, method = "GET") {
  let reply;
  const headers = new Headers({ "X-Server-Timing": "1" });
  try {
    if (key) headers.set("Authorization", `Bearer ${key}`);
  } catch {
    throw new Failure("The key has characters that no key can have.", 401);
  }
  try {
    reply = await fetch(path, { method, headers, cache: "no-store" });
  } catch {
    throw new Failure("The service cannot be reached. Is it still running?");
  }
  const text = await reply.text();
  if (!reply.ok) throw new Failure(sentence(text, reply.status), reply.status);
  const took = /dur=([0-9.]+)/.exec(reply.headers.get("Server-Timing") ?? "");
  return { text, ms: took ? Number(took[1]) : null };
}

function sentence(text, status) {
  if (status === 401) return key ? "The service does not take this key." : "This service asks for a key.";
  try {
    const { message } = JSON.parse(text).error;
    return `${message[0].toUpperCase()}${message.slice(1)}.`;
  } catch {
    return `The service replied with status ${status} and did not say why.`;
  }
}

const json = async (path) => JSON.parse((await ask(path)).text);

function fail(error) {
  if (!(error instanceof Failure)) throw error;
  at("failure").textContent = error.message;
  at("failure").hidden = false;
  at("status").textContent = "";
  if (error.status === 401) {
    at("key-form").hidden = false;
    at("key").focus();
  }
}

function clearFailure() {
  at("failure").hidden = true;
  at("failure").textContent = "";
}

/** The chosen models, left one first; the right one only where it is another. */
function chosen() {
  const names = [at("left").value, at("right").value];
  return models.length < 2 || names[0] === names[1]
    ? models.filter(({ name }) => name === names[0])
    : names.map((name) => models.find((model) => model.name === name));
}

const question = (user, model, count) => `recommend?${new URLSearchParams({ user_id: user, k: count, model: model.name })}`;

async function recommend(user, model, count) {
  const { text, ms } = await ask(question(user, model, count), "POST");
  if (ms !== null) times.get(model.name).push(ms);
  return { answer: JSON.parse(text), ms };
}

/** A list without its history is still an answer: say what is missing, and go on. */
function unless401(error) {
  if (!(error instanceof Failure) || error.status === 401) throw error;
  return { failed: error.message, items: [] };
}

/** Item id to categories, of one model. */
async function categoriesOf(model, items) {
  const found = new Map();
  if (!model.categories.length || !items.length) return found;
  const paths = [];
  for (const { item_id } of items) {
    const part = `&item_id=${encodeURIComponent(item_id)}`;
    if (!paths.length || paths.at(-1).length + part.length > LONG) paths.push(`items?model=${encodeURIComponent(model.name)}`);
    paths[paths.length - 1] += part;
  }
  for (const reply of await Promise.all(paths.map(json))) {
    for (const item of reply.items) found.set(item.item_id, item.categories);
  }
  return found;
}

async function historyOf(user, model) {
  const names = new URLSearchParams({ limit: SHOWN_HISTORY, model: model.name });
  const { n_items, items } = await json(`users/${encodeURIComponent(user)}/history?${names}`);
  return { n_items, items, categories: await categoriesOf(model, items) };
}

async function compare() {
  const mine = ++asked;
  const user = at("user").value;
  const count = Number(at("count").value);
  const compared = chosen();
  clearFailure();
  if (!user) {
    fail(new Failure("Type or pick a user first."));
    at("user").focus();
    return;
  }
  at("status").textContent = "Asking the service…";
  try {
    const replies = [];
    for (const model of compared) replies.push(await recommend(user, model, count)); // one by one: neither waits for the other
    const knowing = compared.find((_, index) => replies[index].answer.source === "model");
    const [history, cards, ...categories] = await Promise.all([
      knowing ? historyOf(user, knowing).catch(unless401) : null,
      Promise.all(compared.map(proofOf)),
      ...compared.map((model, index) => categoriesOf(model, replies[index].answer.items)),
    ]);
    if (mine !== asked) return;
    current = { user, chosen: compared };
    if (!running) at("run-status").textContent = "";
    show(user, compared, replies, history, categories);
    at("proofs").replaceChildren(...cards);
    at("results").hidden = false;
    showTimes();
  } catch (error) {
    if (mine === asked) fail(error);
  }
  markExample();
}

function show(user, compared, replies, history, categories) {
  const single = compared.length === 1;
  at("lists").classList.toggle("single", single);
  at("right-panel").hidden = at("legend").hidden = single;
  compared.forEach((model, index) => {
    const other = single ? null : replies[1 - index].answer.items;
    const { answer, ms } = replies[index];
    answerPanel(at(`${sides[index]}-panel`), sides[index], model, answer, ms, categories[index], other);
  });
  if (single) at("right-panel").replaceChildren();
  at("history-title").replaceChildren("History of ", element("bdi", { dir: "auto" }, user));
  at("history-note").textContent = history?.failed ?? (history
    ? `${whole(history.n_items)} ${history.n_items === 1 ? "item" : "items"} in training` +
      (history.n_items > history.items.length ? `, the first ${history.items.length} shown` : "")
    : "No model here knows this user: there is no history.");
  at("history-scroll").hidden = !history?.items.length;
  at("history").replaceChildren(...(history ? historyItems(history.items, history.categories) : []));
  at("status").replaceChildren(...summary(user, compared, replies));
}

function summary(user, compared, replies) {
  const name = element("bdi", { dir: "auto" }, user);
  if (replies.every(({ answer }) => answer.source === "popular")) {
    return ["Unknown user ", name, ": here is what is popular."];
  }
  if (replies.every(({ answer }) => !answer.items.length)) return ["For user ", name, " nothing is left to recommend."];
  if (compared.length === 1) return [`${replies[0].answer.items.length} items for user `, name, "."];
  const ids = new Set(replies[0].answer.items.map((item) => item.item_id));
  const rest = replies[1].answer.items;
  const shared = rest.filter((item) => ids.has(item.item_id)).length;
  const unmoved = rest.filter((item, place) => replies[0].answer.items[place]?.item_id === item.item_id).length;
  return [`For user `, name, `, ${shared} of ${rest.length} items are on both lists, ${unmoved || "none"} of them in the same place.`];
}

async function proofOf(model, index) {
  const path = `models/${encodeURIComponent(model.name)}/certificate`;
  if (!certificates.has(model.name)) certificates.set(model.name, (await ask(path)).text);
  return proofCard(sides[index], model, certificates.get(model.name), key ? null : path);
}

function showTimes() {
  const series = current.chosen.map((model, index) => ({
    name: model.name,
    side: sides[index],
    sorted: [...times.get(model.name)].sort((a, b) => a - b),
  }));
  drawCurves(at("chart"), series);
  at("cost-table").replaceChildren(costTable(series));
  return series;
}

/** Call the models in turn, each first every other time, so that neither has the warmer place. */
async function run() {
  if (running) {
    running = false;
    return;
  }
  const { user, chosen: compared } = current;
  const count = Number(at("count").value);
  running = true;
  nameRun();
  clearFailure();
  at("run-status").textContent = "Calling…";
  try {
    for (let call = 0; call < RUN && running; call += 1) {
      for (const model of call % 2 ? [...compared].reverse() : compared) await recommend(user, model, count);
      if (call % 7 === 6) showTimes(); // an odd number: drawing holds up now the one model, now the other
    }
    const medians = showTimes().map(({ name, sorted }) => `of ${whole(sorted.length)} calls of ${name}, half within ${milliseconds(quantile(sorted, 0.5))}`);
    at("run-status").textContent = `In the service, ${medians.join("; ")}.`;
  } catch (error) {
    at("run-status").textContent = "";
    fail(error);
  }
  running = false;
  nameRun();
}

function nameRun() {
  at("run").textContent = running ? "Stop" : `Run ${RUN} calls${models.length > 1 ? " of each" : ""}`;
}

function markExample() {
  for (const button of at("examples").children) button.setAttribute("aria-pressed", String(button.value === at("user").value));
}

function fill() {
  const options = () => models.map((model) => element("option", { value: model.name }, `${model.name} (${model.variant === "none" ? "no" : model.variant} DVIB)`));
  const first = models.find((model) => model.variant === "none") ?? models[0];
  const second = models.find((model) => model !== first && model.variant !== "none" && model.dataset.name === first.dataset.name)
    ?? models.find((model) => model !== first);
  at("left").replaceChildren(...options());
  at("right").replaceChildren(...options());
  at("left").value = first.name;
  at("right").value = (second ?? first).name;
  at("right-field").hidden = models.length < 2;
  at("cost-note").textContent = "From a request’s arrival in the service to the beginning of its reply, by the service’s own clock"
    + (models.length > 1 ? "; the models are called in turn, and each is first every other time." : ".");
  at("examples-group").hidden = !first.example_users.length;
  at("examples").replaceChildren(...first.example_users.map((user) => {
    const button = element("button", { type: "button", "aria-pressed": "false", dir: "auto" }, user);
    button.value = user;
    button.addEventListener("click", () => {
      at("user").value = user;
      compare();
    });
    return button;
  }));
  if (!at("user").value && first.example_users.length) at("user").value = first.example_users[0];
  nameRun();
}

async function start() {
  clearFailure();
  try {
    models = (await json("models")).models;
  } catch (error) {
    fail(error);
    return;
  }
  models.forEach((model) => times.set(model.name, []));
  certificates.clear();
  at("key-form").hidden = true;
  at("links").hidden = Boolean(key); // an address alone carries no key
  if (!models.length) {
    fail(new Failure("This service serves no model."));
    return;
  }
  fill();
  if (at("user").value) await compare();
}

const submitted = (act) => (event) => {
  event.preventDefault();
  act();
};
at("ask").addEventListener("submit", submitted(compare));
at("key-form").addEventListener("submit", submitted(() => {
  key = at("key").value.trim();
  at("key").value = "";
  start();
}));
for (const id of ["left", "right", "count"]) at(id).addEventListener("change", () => at("user").value && compare());
at("run").addEventListener("click", run);
new ResizeObserver(() => current && showTimes()).observe(at("chart"));
start();
