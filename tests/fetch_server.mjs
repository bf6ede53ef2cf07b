// Serves the handlers of a module, which take a Request and return a Response, over HTTP: what a framework does.
// Deliberately no more than that: a client that leaves is told by the request's signal alone, the body is not cancelled.
import { createServer } from "node:http";

const [module, port] = process.argv.slice(2);
const handlers = await import(module);

function asRequest(incoming, signal) {
  const { method, headers, url } = incoming;
  const body = method === "POST" ? { body: incoming, duplex: "half" } : {};
  return new Request(`http://${headers.host}${url}`, { method, headers: flat(headers), signal, ...body });
}

function flat(headers) {
  const kept = Object.entries(headers).filter(([name]) => !["connection", "transfer-encoding"].includes(name));
  return Object.fromEntries(kept);
}

async function serve(incoming, outgoing) {
  const left = new AbortController();
  outgoing.on("close", () => left.abort());
  const answer = await handlers[incoming.method](asRequest(incoming, left.signal));
  outgoing.writeHead(answer.status, Object.fromEntries(answer.headers));
  outgoing.flushHeaders();
  for await (const chunk of answer.body ?? []) outgoing.write(chunk);
  outgoing.end();
}

createServer((incoming, outgoing) => {
  serve(incoming, outgoing).catch((error) => {
    console.error(error.name);
    outgoing.destroy();
  });
}).listen(Number(port), "127.0.0.1");
