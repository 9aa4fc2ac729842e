// The baseline of fan-out: a Node `ws` server that encodes each tick once and sends the buffer to
// every client. Its ticks lie ready in memory.
//
// usage: node fanout.mjs PORT TICKS [PADDING]
import { WebSocketServer } from "ws";

const HIGH_WATER = 1 << 20;
const port = Number(process.argv[2]);
const total = Number(process.argv[3]);
const padding = Number(process.argv[4] ?? 0);
const filler = padding > 0 ? { padding: "x".repeat(padding) } : {};
const start = Date.UTC(2024, 2, 1);
const clients = [];

async function replay(session_id) {
  for (let seq = 1; seq <= total; seq++) {
    const data = {
      timestamp: start + seq * 20,
      datetime: new Date(start + seq * 20).toISOString(),
      symbol: "AAA/USDT",
      exchange: "bench",
      id: String(1000000 + seq),
      price: 65000 + ((seq * 7919) % 100000) / 100,
      amount: ((seq * 104729) % 9999991) / 100000,
      side: seq % 3 ? "buy" : "sell",
      replay_time: Date.now(),
    };
    const text = JSON.stringify({
      type: "tick", session_id, epoch: 1, seq, channel: "trade", data, ...filler,
    });
    const buffer = Buffer.from(text);
    for (const client of clients) client.send(buffer, { binary: false });
    while (clients.some((client) => client.bufferedAmount > HIGH_WATER)) {
      await new Promise((done) => setImmediate(done));
    }
  }
  const end = { type: "end", session_id, epoch: 1, reason: "finished", ticks: total, hash: "" };
  for (const client of clients) client.send(JSON.stringify(end));
}

const server = new WebSocketServer({ host: "127.0.0.1", port, perMessageDeflate: false }, () => {
  console.log("ready");
});
server.on("connection", (socket) => {
  clients.push(socket);
  socket.send(JSON.stringify({ type: "connected", clientId: "1", timestamp: Date.now() }));
  socket.on("message", (raw) => {
    const request = JSON.parse(raw);
    const { session_id } = request;
    if (request.type === "create_session") {
      socket.send(JSON.stringify({ type: "session_created", session_id, epoch: 1 }));
    } else if (request.type === "subscribe") {
      socket.send(JSON.stringify({ type: "subscribed", session_id, epoch: 1, seq: 0 }));
    } else if (request.type === "resume") {
      replay(session_id);
    }
  });
});
