// BullMQ, as a program: what program.py is for the others, in its own language.
//
//     node bullmq_app.cjs burst N | pace RATE N | batch MS N
//     node bullmq_app.cjs serve          // one worker process, until SIGTERM
//
// PEER_URL is its Redis, PEER_SLOTS its `concurrency`. With PEER_LEASE_S its lock lasts so many seconds and
// stalled jobs are looked for as often, up to five times for one job.
'use strict';

const fs = require('node:fs');
const { Queue, Worker } = require('bullmq');

const BULK = 1000;
const LEAD_S = 0.1;
const NAME = 'peer';
const at = new URL(process.env.PEER_URL);
const connection = { host: at.hostname, port: Number(at.port), maxRetriesPerRequest: null };
const sleep = (seconds) => new Promise((resolve) => setTimeout(resolve, Math.max(0, seconds * 1000)));
const monotonic = () => Number(process.hrtime.bigint()) / 1e9; // the clock of Python's time.monotonic
let marks = null;

function mark(kind, { place, due }) {
  marks ??= fs.openSync(process.env.PEER_MARKS, 'a');
  fs.writeSync(marks, `${kind} ${place} ${due} ${process.pid} ${monotonic()}\n`);
}

async function run(job) {
  if (job.name === 'noop') return;
  mark('began', job.data);
  if (job.data.ms) await sleep(job.data.ms / 1000);
  mark('ended', job.data);
}

async function send(add) {
  const queue = new Queue(NAME, { connection });
  await add(queue, { removeOnComplete: true });
  await queue.close();
}

async function burst(queue, opts, n) {
  for (let start = 0; start < n; start += BULK) {
    const size = Math.min(BULK, n - start);
    await queue.addBulk(Array.from({ length: size }, () => ({ name: 'noop', data: {}, opts })));
  }
}

async function paced(queue, opts, rate, n) {
  const began = monotonic() + LEAD_S;
  for (let place = 0; place < n; place += 1) {
    const due = began + place / rate;
    await sleep(due - monotonic());
    await queue.add('work', { place, due, ms: 0 }, opts);
  }
}

async function batch(queue, opts, ms, n) {
  for (let place = 0; place < n; place += 1) await queue.add('work', { place, due: 0, ms }, opts);
}

async function serve() {
  const lease = Number(process.env.PEER_LEASE_S || 0) * 1000;
  const watch = lease ? { lockDuration: lease, stalledInterval: lease, maxStalledCount: 5 } : {};
  const concurrency = Number(process.env.PEER_SLOTS || 12);
  const worker = new Worker(NAME, run, { connection, concurrency, ...watch });
  await worker.waitUntilReady();
  console.log('worker is up');
  process.on('SIGTERM', () => worker.close().then(() => process.exit(0)));
}

const [what, ...numbers] = process.argv.slice(2);
const senders = { burst, pace: paced, batch };
if (what === 'serve') serve();
else if (what in senders) send((queue, opts) => senders[what](queue, opts, ...numbers.map(Number)));
else process.exitCode = 2;
