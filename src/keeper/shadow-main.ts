/**
 * The process that keeps the shadow of one VM which acts on another host, started by `understudy site`:
 *
 *   node src/keeper/shadow-main.ts --vm redis --peer a
 *
 * It listens at a port of its own at this host's address of site.yaml, says so in one line on standard output,
 * `{"ok": true, "port": …}`, and takes one connection, of the keeper on host `--peer`. When that one is lost and it is on
 * record that this shadow was in sync, it becomes the keeper of the VM.
 *
 * SIGTERM and SIGINT end the shadow, and the VM once it acts here, as `understudy stop` does.
 * Exit codes: 0 the shadow was dismissed, or its VM stopped; 1 it could not be kept, 70 a fault of the keeper.
 */
import { flushCompileCache } from 'node:module';
import { parseArgs } from 'node:util';
import { systemClock as clock } from '../base/clock.ts';
import { Failpoints } from '../base/failpoint.ts';
import { processLogger } from '../base/logger.ts';
import { loadSiteConfig, type SiteConfig, siteConfigPath } from '../config/site-config.ts';
import { BoundedLog, jsonLossNote } from '../qemu/bounded-log.ts';
import type { PeerLink } from '../replication/peer-link.ts';
import { encodeWords, MESSAGE } from '../replication/peer-messages.ts';
import type { Resumed } from '../wire/lasting-link.ts';
import { EXIT_FAILED, StopSignals, startError, stopOnFaults } from './keeper-life.ts';
import { ShadowDoor } from './lasting-peer.ts';
import { type AskedShadow, readHello } from './shadow-hello.ts';
import { ShadowLodging } from './shadow-lodging.ts';

const LINK_DEADLINE_MS = 30_000;

const signals = new StopSignals();
let onReconnected: (resumed: Resumed) => void = () => {};
for (const stream of [process.stdout, process.stderr]) stream.on('error', () => {});
process.exitCode = await main();
process.exit();

async function main(): Promise<number> {
  flushCompileCache();
  try {
    const { vm, peer } = parseArgs({
      options: { vm: { type: 'string', default: '' }, peer: { type: 'string', default: '' } },
    }).values;
    const site = loadSiteConfig(siteConfigPath());
    const onResumed = (resumed: Resumed) => onReconnected(resumed);
    using door = await ShadowDoor.open(site, { peer, clock, failpoints: new Failpoints(), onResumed });
    const link = await awaitLink(door, peer);
    const asked = await readHello(link, { vm, peer, signal: signals.start });
    door.know(asked.hello);
    return await keepShadow(site, asked);
  } catch (thrown) {
    process.stdout.write(`${JSON.stringify({ ok: false, error: startError(thrown) })}\n`);
    return EXIT_FAILED;
  }
}

/** Waits for the keeper of the VM, which may come again when its connection breaks. */
async function awaitLink(door: ShadowDoor, peer: string): Promise<PeerLink> {
  const { promise, resolve, reject } = Promise.withResolvers<PeerLink>();
  void door.link.then(resolve);
  process.stdout.write(`${JSON.stringify({ ok: true, port: door.port })}\n`);
  const cancel = clock.after(LINK_DEADLINE_MS, () => reject(new Error(`${peer} did not come`)));
  const abort = () => reject(signals.start.reason);
  signals.start.addEventListener('abort', abort, { once: true });
  try {
    return await promise;
  } finally {
    cancel();
  }
}

async function keepShadow(site: SiteConfig, asked: AskedShadow): Promise<number> {
  const { link } = asked;
  try {
    await using lodging = await ShadowLodging.open(site, asked, { clock, signal: signals.start });
    using file = new BoundedLog(lodging.directory.logPath, { lossNote: jsonLossNote });
    const log = processLogger((line) => file.append(line), clock.wallMs);
    stopOnFaults(signals, lodging.directory, log);
    onReconnected = (resumed) => log.info('connected again', { ...resumed });
    return await lodging.keep({ log, signals });
  } catch (thrown) {
    const { code, message, hint } = startError(thrown);
    const words = { kind: 'refused' as const, code, message, ...(typeof hint === 'string' && { hint }) };
    await link.send(MESSAGE.words, [encodeWords(words)]).catch(() => {});
    throw thrown;
  } finally {
    link.close();
  }
}
