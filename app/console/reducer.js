// The fold of docs/protocol.md for the page; app/protocol/reducer.py is the same in Python (shared golden files).
// Pure: `reduce` and `fold` return a new state that shares what did not change, so a page can compare by identity. An
// event takes the same time whatever the state holds, but for a list that was read since it last changed: it is copied.

export const initial = (runId) => ({
  run_id: runId, status: "pending", agent: null, attempt: 0, last_seq: 0, last_ts: null, plan: [], steps: [],
  messages: [], answer: { text: "", status: "draft" }, tool_calls: [], approvals: [], sources: [], checks: [],
  subagents: [], inputs: [], context: {}, usage: {}, output: null, error: null, digest: null,
});

export const reduce = (state, event) => fold([event], state);

export function fold(events, state) {
  const run = State.taken(state) ?? new Indexed(state);
  run.begin(state);
  for (const event of events) apply(run, event);
  return State.given(run);
}

function apply(run, { seq, run_id, type, ts, payload }) {
  const { state } = run;
  if (seq !== state.last_seq + 1) throw new Error(`gap: seq ${seq} cannot follow ${state.last_seq}`);
  if (run_id !== state.run_id) throw new Error(`an event of ${run_id} in the log of ${state.run_id}`);
  if (ENDED.has(state.status)) throw new Error(`seq ${seq} follows the terminal event`);
  if (Object.hasOwn(RULES, type)) RULES[type](run, payload, state);
  state.last_seq = seq;
  state.last_ts = ts;
}

// A list of a state. Only the latest version of a list has the array; each earlier one knows what was written since, and
// makes an array of its own where somebody wants to see it.
class Version {
  read = false; next = null; undo = null;
  constructor(array, log = null) { this.array = array; this.log = log; }
  get() {
    if (!this.array) {
      const path = [this];
      while (!path.at(-1).array) path.push(path.at(-1).next);
      this.array = path.pop().array.slice();
      for (const { undo } of path.reverse()) undo.toReversed().forEach(([at, before, length]) => {
        this.array[at] = before;
        this.array.length = length;
      });
      this.next = this.undo = null;
    }
    this.read = true;
    return this.array;
  }
  follow() { // the version that is written from here on; one that somebody has read stays as it is
    if (this.read) return new Version(this.array.slice());
    const later = new Version(this.array, []);
    Object.assign(this, { array: null, next: later, undo: later.log });
    return later;
  }
  write(at, item) { // at the index, which may be the end
    this.log?.push([at, this.array[at], this.array.length]);
    this.array[at] = item;
  }
}

const ENDED = new Set(["completed", "failed", "cancelled"]);

// A list of the state whose items are found by their id, and by the statuses that are watched.
class Items {
  constructor(run, name, watched = []) {
    Object.assign(this, { run, name, at: new Map(), having: new Map(watched.map((status) => [status, new Set()])) });
    run.list(name).forEach((item, at) => { this.at.set(item.id, at); this.having.get(item.status)?.add(at); });
  }
  find(id) { return this.run.list(this.name)[this.at.get(id)]; }
  put(item) { // added, or put in the place of the one with its id: a call that runs again keeps its id
    const at = this.at.get(item.id) ?? this.run.list(this.name).length;
    this.at.set(item.id, at);
    this.replace(at, item);
    return at;
  }
  change(id, changes) {
    const at = this.at.get(id);
    if (at !== undefined) this.replace(at, { ...this.run.list(this.name)[at], ...changes });
    return at !== undefined;
  }
  changeAll(statuses, status) {
    for (const at of statuses.flatMap((before) => [...this.having.get(before)]))
      this.replace(at, { ...this.run.list(this.name)[at], status });
  }
  replace(at, item) {
    const before = this.run.list(this.name)[at]?.status;
    if (before !== item.status) {
      this.having.get(before)?.delete(at);
      this.having.get(item.status)?.add(at);
    }
    this.run.write(this.name, at, item);
  }
}

const LISTS = ["plan", "steps", "messages", "tool_calls", "approvals", "sources", "checks", "subagents", "inputs"];

// A state with what the rules need to find its items in constant time.
class Indexed {
  constructor(state) {
    this.versions = Object.fromEntries(LISTS.map((name) => [name, new Version(state[name])]));
    for (const name of LISTS) this.versions[name].read = true; // whoever made the state has them, too
    this.steps = new Items(this, "steps", ["running", "completed", "failed"]);
    this.messages = new Items(this, "messages", ["open", "completed"]);
    this.tool_calls = new Items(this, "tool_calls", ["running"]);
    this.approvals = new Items(this, "approvals");
    this.subagents = new Items(this, "subagents");
    this.answers = []; // a heap, the last message first: each that may be the answer, and some that may not any more
    state.messages.forEach((message, at) => { if (mayAnswer(message)) pushLast(this.answers, at); });
    this.indexPlan(state.plan);
  }
  begin(state) { // a new state, whose lists are those of `state` until they are written
    this.versions = { ...this.versions };
    this.fresh = new Set(); // the lists that this fold has written
    this.state = new State(state, this.versions);
  }
  list(name) { return this.versions[name].array; }
  write(name, at, item) { // the item at this index, which may be the end
    if (!this.fresh.has(name)) this.set(name, this.versions[name].follow());
    this.versions[name].write(at, item);
  }
  set(name, version) {
    this.versions[name] = version;
    this.fresh.add(name);
  }
  add(name, item) { this.write(name, this.list(name).length, item); }
  setPlan(plan) {
    this.set("plan", new Version(plan));
    this.indexPlan(plan);
  }
  indexPlan(plan) { // an id may stand in it several times
    this.planned = new Map();
    plan.forEach(({ id }, at) => { this.planned.has(id) ? this.planned.get(id).push(at) : this.planned.set(id, [at]); });
  }
  markPlan(id, status) {
    for (const at of this.planned.get(id) ?? []) this.write("plan", at, { ...this.list("plan")[at], status });
  }
  planStatus(id) { return this.planned.has(id) ? this.list("plan")[this.planned.get(id).at(-1)].status : "pending"; }
  putMessage(message) {
    const before = this.messages.find(message.id), at = this.messages.put(message);
    if (mayAnswer(message) && !(before && mayAnswer(before))) pushLast(this.answers, at);
  }
  abandonAnswers() {
    for (const at of this.answers) {
      const message = this.list("messages")[at];
      if (mayAnswer(message)) this.messages.change(message.id, { status: "abandoned" });
    }
    this.answers = [];
  }
  followAnswer() { // the last message of the assistant that is not abandoned
    const messages = this.list("messages"), { answer } = this.state;
    while (this.answers.length && !mayAnswer(messages[this.answers[0]])) popLast(this.answers);
    const text = this.answers.length ? messages[this.answers[0]].text : "";
    if (text !== answer.text) this.state.answer = { ...answer, text };
  }
}

// A state whose lists are looked up when they are read. Own members all, in the order of `initial`: whoever copies it or
// writes it as JSON has them. Written out, as the loop would take longer than all the rest of an event.
class State {
  #versions;
  #index = null; // that is level with it; one state has it, the latest
  constructor(state, versions) {
    this.#versions = versions;
    this.run_id = state.run_id; this.status = state.status; this.agent = state.agent; this.attempt = state.attempt;
    this.last_seq = state.last_seq; this.last_ts = state.last_ts;
    define(this, "plan", LOOKS.plan); define(this, "steps", LOOKS.steps); define(this, "messages", LOOKS.messages);
    this.answer = state.answer;
    define(this, "tool_calls", LOOKS.tool_calls); define(this, "approvals", LOOKS.approvals);
    define(this, "sources", LOOKS.sources); define(this, "checks", LOOKS.checks);
    define(this, "subagents", LOOKS.subagents); define(this, "inputs", LOOKS.inputs);
    this.context = state.context; this.usage = state.usage; this.output = state.output;
    this.error = state.error; this.digest = state.digest;
  }
  static taken(state) { // its index; null: it has none any more, or never had one
    if (!(#index in state)) return null;
    const run = state.#index;
    state.#index = null;
    return run;
  }
  static given(run) {
    run.state.#index = run;
    return run.state;
  }
  static look(name) {
    return { enumerable: true, configurable: true, get() { return this.#versions[name].get(); } };
  }
}

const define = Object.defineProperty, LOOKS = Object.fromEntries(LISTS.map((name) => [name, State.look(name)]));

const mayAnswer = ({ role, status }) => role === "assistant" && status !== "abandoned";

function pushLast(heap, at) {
  let child = heap.push(at) - 1;
  for (let parent; child && heap[parent = (child - 1) >> 1] < at; child = parent) heap[child] = heap[parent];
  heap[child] = at;
}

function popLast(heap) {
  const moved = heap.pop();
  if (!heap.length) return;
  let parent = 0;
  for (let child; (child = 2 * parent + 1) < heap.length; parent = child) {
    if (heap[child + 1] > heap[child]) child += 1;
    if (heap[child] <= moved) break;
    heap[parent] = heap[child];
  }
  heap[parent] = moved;
}

// Those of the named members that the payload has.
const members = (payload, ...names) =>
  Object.fromEntries(names.filter((name) => Object.hasOwn(payload, name)).map((name) => [name, payload[name]]));

const running = ({ state }, { attempt }) => Object.assign(state, { status: "running", attempt });

const end = ({ state }, status, { digest }) =>
  Object.assign(state, { status, digest, answer: { ...state.answer, status: "final" } });

// Of run.step and run.resumed; the latter never restarts.
function runStep(run, payload) {
  running(run, payload);
  run.messages.changeAll(payload.restart ? ["open", "completed"] : ["open"], "abandoned");
  run.followAnswer();
  if (!payload.restart) return;
  run.steps.changeAll(["running", "completed", "failed"], "abandoned");
  run.tool_calls.changeAll(["running"], "cancelled");
  run.setPlan([]);
  for (const name of ["sources", "checks"]) run.set(name, new Version([]));
}

// A step's change; the plan's entry of the same id takes over its status.
const step = (run, id, changes) =>
  run.steps.change(id, changes) && changes.status && run.markPlan(id, changes.status);

function startStep(run, { step_id: id, title, index }) {
  run.steps.put({ id, title, index, fraction: 0, label: null, status: "running" });
  run.markPlan(id, "running");
}

function delta(run, { message_id: id, text }) {
  const message = run.messages.find(id);
  if (message?.status !== "open") return;
  run.messages.change(id, { text: message.text + text });
  run.followAnswer();
}

function countJob(run, id, name) {
  const child = run.subagents.find(id);
  if (child) run.subagents.change(id, { [name]: child[name] + 1 });
}

function usage({ state }, payload) {
  const known = members(payload, "input_tokens", "output_tokens", "budget_used_pct", "cost");
  const sums = ["input_tokens", "output_tokens", "cost"].filter((name) => payload[name] != null)
    .map((name) => [name, Math.min(Number.MAX_SAFE_INTEGER, (state.usage[name] ?? 0) + payload[name])]);
  state.context = { ...state.context, ...known };
  state.usage = { ...state.usage, ...Object.fromEntries(sums) };
}

const compaction = ({ state }, compaction) => { state.context = { ...state.context, compaction }; };

// An output that is a long answer, or made of it, is said by its name.
function outputOf(state, { output, output_is: name }) {
  const { answer: { text }, sources, checks } = state;
  if (output !== null || !["answer", "streamed"].includes(name)) return output;
  return name === "answer" ? text : { text, sources, checks };
}

const RULES = { // (run, payload, state of the run, which is its own)
  "run.created": (run, p, s) => { s.agent = p.agent; },
  "run.started": running,
  "run.step": runStep,
  "run.waiting": (run, p, s) => { s.status = "waiting"; },
  "run.resumed": runStep,
  "run.completed": (run, p, s) => { end(run, "completed", p); s.output = outputOf(s, p); s.usage = p.usage ?? s.usage; },
  "run.failed": (run, p, s) => { end(run, "failed", p); s.error = p.error; },
  "run.cancelled": (run, p) => end(run, "cancelled", p),
  "plan.created": (run, p) => run.setPlan(p.steps.map(({ id, title }) => ({ id, title, status: "pending" }))),
  "plan.updated": (run, p) =>
    run.setPlan(p.steps.map(({ id, title }) => ({ id, title, status: run.planStatus(id) }))),
  "step.started": startStep,
  "step.progress": (run, p) => step(run, p.step_id, members(p, "fraction", "label")),
  "step.completed": (run, p) => step(run, p.step_id,
    { status: "completed", fraction: 1, duration_ms: p.duration_ms }),
  "step.failed": (run, p) => step(run, p.step_id, { status: "failed", error: p.error }),
  "message.started": (run, p) => {
    if (p.replaces) run.abandonAnswers();
    run.putMessage({ id: p.message_id, role: p.role, text: "", status: "open" });
    run.followAnswer();
  },
  "message.delta": delta,
  "message.completed": (run, p) => {
    if (run.messages.find(p.message_id)?.status === "open") run.messages.change(p.message_id, { status: "completed" });
  },
  "tool.started": (run, p) => run.tool_calls.put({ id: p.tool_call_id, name: p.name, label: p.label,
    summary: p.summary ?? null, step_id: p.step_id ?? null, status: "running", fraction: null }),
  "tool.progress": (run, p) => run.tool_calls.change(p.tool_call_id, { ...members(p, "fraction"),
    ...(Object.hasOwn(p, "label") && { progress_label: p.label }) }),
  "tool.completed": (run, p) => run.tool_calls.change(p.tool_call_id, { status: "completed", fraction: 1,
    ...members(p, "preview", "truncated", "bytes", "duration_ms") }),
  "tool.failed": (run, p) => run.tool_calls.change(p.tool_call_id, { error_code: p.code,
    status: p.code === "cancelled" ? "cancelled" : "failed", ...members(p, "duration_ms") }),
  "approval.required": (run, p) => run.approvals.put({ id: p.approval_id, tool_call_id: p.tool_call_id ?? null,
    label: p.label, requires: p.requires, expires_at: p.expires_at ?? null, status: "open", by: null,
    comment: null }),
  "approval.resolved": (run, p) => run.approvals.change(p.approval_id,
    { status: p.decision, by: p.by ?? null, comment: p.comment ?? null }),
  "source.added": (run, p) => run.add("sources",
    { id: p.source_id ?? null, title: p.title, url: p.url ?? null, snippet: p.snippet ?? null }),
  "quality.checked": (run, p) => run.add("checks",
    { name: p.name, passed: p.passed, score: p.score ?? null, note: p.note ?? null }),
  "context.usage": usage,
  "context.compaction.started": (run) => compaction(run, { status: "running" }),
  "context.compaction.completed": (run, p) => compaction(run,
    { status: "completed", ...members(p, "before_tokens", "after_tokens") }),
  "subagent.spawned": (run, p) => run.subagents.put({ id: p.child_run_id, label: p.label ?? null,
    status: "spawned", jobs_started: 0, jobs_completed: 0 }),
  "subagent.status": (run, p) => run.subagents.change(p.child_run_id, { status: p.status }),
  "subagent.job.started": (run, p) => countJob(run, p.child_run_id, "jobs_started"),
  "subagent.job.completed": (run, p) => countJob(run, p.child_run_id, "jobs_completed"),
  "subagent.closed": (run, p) => run.subagents.change(p.child_run_id, { status: p.status ?? "closed" }),
  "input.received": (run, p) => run.add("inputs", { id: p.input_id ?? null, text: p.text }),
};
