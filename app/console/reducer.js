// The fold of docs/protocol.md for the page; app/protocol/reducer.py is the same in Python (shared golden files).
// Pure: `reduce` returns a new state that shares what did not change, so a page can compare by identity.

export const initial = (runId) => ({
  run_id: runId, status: "pending", agent: null, attempt: 0, last_seq: 0, last_ts: null, plan: [], steps: [],
  messages: [], answer: { text: "", status: "draft" }, tool_calls: [], approvals: [], sources: [], checks: [],
  subagents: [], inputs: [], context: {}, usage: {}, output: null, error: null, digest: null,
});

export function reduce(state, { seq, run_id, type, ts, payload }) {
  if (seq !== state.last_seq + 1) throw new Error(`gap: seq ${seq} cannot follow ${state.last_seq}`);
  if (run_id !== state.run_id) throw new Error(`an event of ${run_id} in the log of ${state.run_id}`);
  if (ENDED.has(state.status)) throw new Error(`seq ${seq} follows the terminal event`);
  const changes = Object.hasOwn(RULES, type) ? RULES[type](state, payload) : {};
  return { ...state, ...changes, last_seq: seq, last_ts: ts };
}

const ENDED = new Set(["completed", "failed", "cancelled"]);

// Those of the named members that the payload has.
const members = (payload, ...names) =>
  Object.fromEntries(names.filter((name) => Object.hasOwn(payload, name)).map((name) => [name, payload[name]]));

// The items with one of them changed, if it is there (and passes `when`).
const change = (items, id, changes, when = () => true) =>
  items.map((item) => (item.id === id && when(item) ? { ...item, ...changes(item) } : item));

// The items with one added, or put in the place of the one with its id: a call that runs again keeps its id.
const put = (items, item) =>
  items.some(({ id }) => id === item.id) ? items.map((old) => (old.id === item.id ? item : old)) : [...items, item];

const running = (state, { attempt }) => ({ status: "running", attempt });

const end = (state, status, { digest }) => ({ status, digest, answer: { ...state.answer, status: "final" } });

// The messages, and the answer that follows the last one of the assistant that is not abandoned.
function withMessages(state, messages) {
  const last = messages.findLast(({ role, status }) => role === "assistant" && status !== "abandoned");
  return { messages, answer: { ...state.answer, text: last ? last.text : "" } };
}

// Of run.step and run.resumed; the latter never restarts.
function runStep(state, payload) {
  const abandoned = (message) => payload.restart || message.status === "open";
  const messages = state.messages.map((m) => (abandoned(m) ? { ...m, status: "abandoned" } : m));
  const begun = { ...running(state, payload), ...withMessages(state, messages) };
  if (!payload.restart) return begun;
  const steps = state.steps.map((item) => ({ ...item, status: "abandoned" }));
  const cancelled = (call) => (call.status === "running" ? { ...call, status: "cancelled" } : call);
  return { ...begun, steps, tool_calls: state.tool_calls.map(cancelled), plan: [], sources: [], checks: [] };
}

// A step's change; the plan's entry of the same id takes over its status.
function step(state, id, changes) {
  if (!state.steps.some((present) => present.id === id)) return {};
  const plan = changes.status ? change(state.plan, id, () => ({ status: changes.status })) : state.plan;
  return { plan, steps: change(state.steps, id, () => changes) };
}

const tool = (state, id, changes) => ({ tool_calls: change(state.tool_calls, id, () => changes) });

const child = (state, id, changes) => ({ subagents: change(state.subagents, id, changes) });

const isOpen = ({ status }) => status === "open";

function usage(state, payload) {
  const known = members(payload, "input_tokens", "output_tokens", "budget_used_pct", "cost");
  const sums = ["input_tokens", "output_tokens", "cost"].filter((name) => payload[name] != null)
    .map((name) => [name, Math.min(Number.MAX_SAFE_INTEGER, (state.usage[name] ?? 0) + payload[name])]);
  return { context: { ...state.context, ...known }, usage: { ...state.usage, ...Object.fromEntries(sums) } };
}

const RULES = {
  "run.created": (s, p) => ({ agent: p.agent }),
  "run.started": running,
  "run.step": runStep,
  "run.waiting": () => ({ status: "waiting" }),
  "run.resumed": runStep,
  "run.completed": (s, p) => ({ ...end(s, "completed", p), output: p.output, usage: p.usage ?? s.usage }),
  "run.failed": (s, p) => ({ ...end(s, "failed", p), error: p.error }),
  "run.cancelled": (s, p) => end(s, "cancelled", p),
  "plan.created": (s, p) => ({ plan: p.steps.map(({ id, title }) => ({ id, title, status: "pending" })) }),
  "plan.updated": (s, p) => ({ plan: p.steps.map(({ id, title }) =>
    ({ id, title, status: s.plan.findLast((entry) => entry.id === id)?.status ?? "pending" })) }),
  "step.started": (s, { step_id: id, title, index }) => step(
    { ...s, steps: put(s.steps, { id, title, index, fraction: 0, label: null }) }, id, { status: "running" }),
  "step.progress": (s, p) => step(s, p.step_id, members(p, "fraction", "label")),
  "step.completed": (s, p) => step(s, p.step_id, { status: "completed", fraction: 1, duration_ms: p.duration_ms }),
  "step.failed": (s, p) => step(s, p.step_id, { status: "failed", error: p.error }),
  "message.started": (s, p) => withMessages(s, put(s.messages,
    { id: p.message_id, role: p.role, text: "", status: "open" })),
  "message.delta": (s, p) => withMessages(s, change(s.messages, p.message_id,
    ({ text }) => ({ text: text + p.text }), isOpen)),
  "message.completed": (s, p) => ({ messages: change(s.messages, p.message_id,
    () => ({ status: "completed" }), isOpen) }),
  "tool.started": (s, p) => ({ tool_calls: put(s.tool_calls, { id: p.tool_call_id, name: p.name, label: p.label,
    summary: p.summary ?? null, step_id: p.step_id ?? null, status: "running", fraction: null }) }),
  "tool.progress": (s, p) => tool(s, p.tool_call_id, { ...members(p, "fraction"),
    ...(Object.hasOwn(p, "label") && { progress_label: p.label }) }),
  "tool.completed": (s, p) => tool(s, p.tool_call_id, { status: "completed", fraction: 1,
    ...members(p, "preview", "truncated", "bytes", "duration_ms") }),
  "tool.failed": (s, p) => tool(s, p.tool_call_id, { status: p.code === "cancelled" ? "cancelled" : "failed",
    error_code: p.code, ...members(p, "duration_ms") }),
  "approval.required": (s, p) => ({ approvals: put(s.approvals, { id: p.approval_id,
    tool_call_id: p.tool_call_id ?? null, label: p.label, requires: p.requires,
    expires_at: p.expires_at ?? null, status: "open", by: null, comment: null }) }),
  "approval.resolved": (s, p) => ({ approvals: change(s.approvals, p.approval_id,
    () => ({ status: p.decision, by: p.by ?? null, comment: p.comment ?? null })) }),
  "source.added": (s, p) => ({ sources: [...s.sources,
    { id: p.source_id ?? null, title: p.title, url: p.url ?? null, snippet: p.snippet ?? null }] }),
  "quality.checked": (s, p) => ({ checks: [...s.checks,
    { name: p.name, passed: p.passed, score: p.score ?? null, note: p.note ?? null }] }),
  "context.usage": usage,
  "context.compaction.started": (s) => ({ context: { ...s.context, compaction: { status: "running" } } }),
  "context.compaction.completed": (s, p) => ({ context: { ...s.context,
    compaction: { status: "completed", ...members(p, "before_tokens", "after_tokens") } } }),
  "subagent.spawned": (s, p) => ({ subagents: put(s.subagents, { id: p.child_run_id, label: p.label ?? null,
    status: "spawned", jobs_started: 0, jobs_completed: 0 }) }),
  "subagent.status": (s, p) => child(s, p.child_run_id, () => ({ status: p.status })),
  "subagent.job.started": (s, p) => child(s, p.child_run_id, (c) => ({ jobs_started: c.jobs_started + 1 })),
  "subagent.job.completed": (s, p) => child(s, p.child_run_id, (c) => ({ jobs_completed: c.jobs_completed + 1 })),
  "subagent.closed": (s, p) => child(s, p.child_run_id, () => ({ status: p.status ?? "closed" })),
  "input.received": (s, p) => ({ inputs: [...s.inputs, { id: p.input_id ?? null, text: p.text }] }),
};
