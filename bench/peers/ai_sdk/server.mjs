// POST /api/chat streams a chat's answer, GET /api/chat/{id}/stream resumes it. The model is a program: numbered deltas
// at a pace. A chat has one stream, which has its id; which chat has an active stream is what resumable-stream knows.
import { createServer } from "node:http";
import { setTimeout as sleep } from "node:timers/promises";
import { pipeUIMessageStreamToResponse, streamText, toUIMessageStream, UI_MESSAGE_STREAM_HEADERS } from "ai";
import { MockLanguageModelV4 } from "ai/test";
import { createResumableStreamContext } from "resumable-stream";

const streams = createResumableStreamContext({ waitUntil: null });
const USAGE = { inputTokens: { total: 1 }, outputTokens: { total: 1 } };

async function* say({ count, interval_ms }) {
  yield { type: "stream-start", warnings: [] };
  yield { type: "text-start", id: "1" };
  for (let number = 0; number < count; number++) {
    yield { type: "text-delta", id: "1", delta: `#${number}# and some words ` };
    if (interval_ms) await sleep(interval_ms);
  }
  yield { type: "text-end", id: "1" };
  yield { type: "finish", finishReason: { unified: "stop" }, usage: USAGE };
}

const model = new MockLanguageModelV4({
  doStream: async ({ prompt }) => ({
    stream: ReadableStream.from(say(JSON.parse(prompt.at(-1).content[0].text))),
  }),
});

async function start(request, response) {
  let body = "";
  for await (const read of request) body += read;
  const { id, message } = JSON.parse(body);
  const result = streamText({ model, prompt: message.parts[0].text });
  pipeUIMessageStreamToResponse({
    response,
    stream: toUIMessageStream({ stream: result.stream }),
    consumeSseStream: async ({ stream }) => {
      await streams.createNewResumableStream(id, () => stream);
    },
  });
}

async function resume(id, resumeAt, response) {
  const stream = await streams.resumeExistingStream(id, resumeAt);
  if (!stream) return response.writeHead(204).end();
  response.writeHead(200, UI_MESSAGE_STREAM_HEADERS);
  for await (const text of stream) {
    if (response.destroyed) break;
    response.write(text);
  }
  response.end();
}

createServer(async (request, response) => {
  const url = new URL(request.url, "http://localhost");
  const [, id] = url.pathname.match(/^\/api\/chat\/(\w+)\/stream$/) ?? [];
  try {
    if (request.method === "POST") await start(request, response);
    else if (id) await resume(id, Number(url.searchParams.get("resumeAt") ?? 0), response);
    else response.writeHead(404).end();
  } catch (error) {
    console.error(error);
    if (!response.headersSent) response.writeHead(500);
    response.end();
  }
}).listen(Number(process.env.PORT), "127.0.0.1");
