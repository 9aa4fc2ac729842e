// The baseline: a Node `ws` server that sends one JSON text frame per trade, written the way such
// servers are usually written. It reads no storage: its ticks lie ready in memory as objects.
//
// usage: node baseline.mjs PORT TICKS [PADDING]; PADDING lengthens each message to compare like
// with like.
import { WebSocketServer } from "ws";

const HIGH_WATER = 1 << 20;
const DISTINCT = 65536;
const port = Number(process.argv[2]);
const total = Number(process.argv[3]);
const padding = Number(process.argv[4] ?? 0);

const symbols = ["AAA/USDT", "BBB/USDT", "CCC/USDT", "DDD/USDT", "EEE/USDT"];
const start = Date.UTC(2024, 2, 1);
const trades = Array.from({ length: DISTINCT }, (_, i) => ({
  timestamp: start + i * 20,
  datetime: new Date(start + i * 20).toISOString(),
  symbol: symbols[i % symbols.length],
  exchange: "bench",
  id: String(1000000 + i),
  price: 65000 + ((i * 7919) % 100000) / 100,
  amount: ((i * 104729) % 9999991) / 100000,
  side: i % 3 ? "buy" : "sell",
  replay_time: 0,
}));
const filler = padding > 0 ? { padding: "x".repeat(padding) } : {};

async function replay(socket, request) {
  const session_id = request.session_id;
  socket.send(JSON.stringify({ type: "session_created", session_id, status: "active", epoch: 1 }));
  for (let seq = 1; seq <= total; seq++) {
    const data = trades[seq % DISTINCT];
    data.replay_time = Date.now();
    socket.send(
      JSON.stringify({ type: "tick", session_id, epoch: 1, seq, channel: "trade", data, ...filler }),
    );
    while (socket.bufferedAmount > HIGH_WATER) await new Promise((done) => setImmediate(done));
    if (socket.readyState !== socket.OPEN) return;
  }
  const end = { type: "end", session_id, epoch: 1, reason: "finished", ticks: total, hash: "" };
  socket.send(JSON.stringify(end));
}

const server = new WebSocketServer({ host: "127.0.0.1", port, perMessageDeflate: false }, () => {
  console.log("ready");
});
server.on("connection", (socket) => {
  socket.send(JSON.stringify({ type: "connected", clientId: "1", timestamp: Date.now() }));
  socket.on("message", (text) => {
    const request = JSON.parse(text);
    if (request.type === "create_session") replay(socket, request);
  });
});
