// Wires the page's parts together.

import { showAbout } from "./about.js";
import { copyText } from "./clipboard.js";
import { Conversation } from "./conversation.js";
import { EngineFeed } from "./engine.js";
import { EXAMPLES, showExamples } from "./examples.js";
import { Gauges } from "./gauges.js";
import { Legend } from "./legend.js";
import { Playground } from "./playground.js";
import { Problem } from "./problem.js";
import { Settings } from "./settings.js";
import { TokenCard } from "./token_card.js";

const byId = (id) => document.getElementById(id);
const prompt = byId("prompt");
let model = null;

function announce(words) {
  byId("announcer").textContent = words;
}

const settings = new Settings(byId("settings"));
const problem = new Problem(byId("problem"), (param) => settings.control(param));
const card = new TokenCard(byId("token-card"), announce);
const conversation = new Conversation(byId("transcript"), card);
const playground = new Playground({
  ask: asked, panes: byId("panes"), legend: new Legend(byId("legend"), document.body), verdict: byId("verdict"), note: byId("timing-note"), card, onChange: showState,
});
let answer = null; // in chat: the latest one, which moves into the conversation when the next message is sent

// What the controls ask for; throws InvalidSetting.
function asked() {
  const isChat = settings.mode === "chat";
  const maxTokens = settings.maxTokens;
  const shared = { ...(model === null ? {} : { model }), ...settings.sampling, stream: true, stream_options: { include_usage: true, include_obfuscation: false } };
  const length = maxTokens === null ? {} : { [isChat ? "max_completion_tokens" : "max_tokens"]: maxTokens };
  const subject = isChat ? { messages: conversation.messages(byId("system").value), logprobs: true } : { prompt: prompt.value, logprobs: 0 };
  return {
    path: isChat ? "v1/chat/completions" : "v1/completions",
    body: (speculates, salt) => ({ ...shared, ...length, ...subject, speculation: settings.speculation(speculates), ...(salt ? { cache_salt: salt } : {}) }),
    maxTokens,
    speculates: settings.speculates,
    race: settings.race,
  };
}

async function run(both) {
  if (playground.isRunning) return;
  problem.clear();
  card.hide();
  const isChat = settings.mode === "chat";
  if (isChat && !sendMessage()) return;
  try {
    const { recording, summary } = await (both ? playground.runBoth() : playground.runOne());
    answer = recording;
    announce(summary);
  } catch (error) {
    if (isChat) prompt.value = conversation.takeBack();
    problem.show(error);
  }
  showState();
}

// Moves the latest answer and the new message into the conversation. False where there is no message.
function sendMessage() {
  if (!prompt.value.trim()) { prompt.focus(); return false; }
  if (answer !== null && !conversation.isEmpty) conversation.add("assistant", answer.text, answer.tokens);
  answer = null;
  playground.clear();
  conversation.add("user", prompt.value);
  prompt.value = "";
  return true;
}

function showState() {
  const { isRunning } = playground;
  const focused = document.activeElement;
  for (const id of ["run", "both", "clear"]) byId(id).disabled = isRunning;
  byId("stop-run").disabled = !isRunning;
  byId("copy").disabled = isRunning || !playground.recordings.length;
  byId("result").setAttribute("aria-busy", String(isRunning));
  if (focused?.disabled) (isRunning ? byId("stop-run") : byId("run")).focus({ preventScroll: true }); // the keyboard keeps its place
}

function showMode() {
  const isChat = settings.mode === "chat";
  document.body.dataset.mode = settings.mode;
  byId("system-field").hidden = !isChat;
  byId("prompt-label").textContent = isChat ? "Message" : "Prompt";
  prompt.placeholder = isChat ? "Say something" : "What shall the model go on with?";
  byId("result")[isChat ? "after" : "before"](byId("ask")); // a chat goes downwards
  showExamples(byId("examples"), settings.mode, (text) => { prompt.value = text; prompt.focus(); });
  prompt.value = isChat ? "" : Object.values(EXAMPLES.completion)[0];
  clear();
}

function clear() {
  playground.clear();
  conversation.clear();
  answer = null;
  problem.clear();
  card.hide();
  showState();
}

byId("ask").addEventListener("submit", (event) => { event.preventDefault(); run(false); });
byId("both").addEventListener("click", () => run(true));
byId("stop-run").addEventListener("click", () => playground.stop());
byId("clear").addEventListener("click", () => { clear(); prompt.focus(); });
byId("dice").addEventListener("click", () => announce(`Seed ${settings.drawSeed()}`));
byId("copy").addEventListener("click", async () => announce((await copyText(playground.recordings.at(-1).text)) ? "Copied." : "Copying was not allowed."));
for (const input of document.querySelectorAll("input[name=mode]")) input.addEventListener("change", showMode);
document.addEventListener("keydown", (event) => {
  if (event.isComposing) return;
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    run(event.shiftKey);
  } else if (event.key === "Escape") {
    if (card.isShown) card.hide(); else playground.stop();
  }
});

const gauges = new Gauges(byId("gauges"));
const connection = byId("connection");

function showConnection(state, words) {
  if (connection.dataset.state === state && state === "connected") return;
  connection.dataset.state = state;
  connection.querySelector(".words").textContent = words;
}

new EngineFeed(
  (engine, at) => {
    showConnection("connected", "connected");
    gauges.update(engine.snapshot, at);
    if (engine.model === model) return;
    model = engine.model;
    showAbout(byId("about"), engine);
    byId("max_tokens").placeholder = `up to ${engine.max_model_len}`;
    if (engine.has_chat_template === false && settings.disableChat("No chat: this model has no chat template.")) showMode();
  },
  (seconds, error) => {
    gauges.away();
    showConnection("away", error.status === 401 ? "the key was not taken" : `no answer, trying again in ${seconds} s`);
  },
);

if (/Mac|iPhone|iPad/.test(navigator.platform)) document.querySelector("#run kbd").textContent = "⌘ ↵";
showMode();
