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
import { processLogger } from '../base/logger.ts';
import { loadSiteConfig, type SiteConfig, siteConfigPath } from '../config/site-config.ts';
import { BoundedLog, jsonLossNote } from '../qemu/bounded-log.ts';
import type { PeerLink } from '../replication/peer-link.ts';
import { encodeWords, MESSAGE } from '../replication/peer-messages.ts';
import { EXIT_FAILED, StopSignals, startError, stopOnFaults } from './keeper-life.ts';
import { openDoor } from './peer-door.ts';
import { type AskedShadow, readHello } from './shadow-hello.ts';
import { ShadowLodging } from './shadow-lodging.ts';

const LINK_DEADLINE_MS = 30_000;

const signals = new StopSignals();
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
    const link = await awaitLink(site, peer);
    const asked = await readHello(link, { vm, peer, signal: signals.start });
    return await keepShadow(site, asked);
  } catch (thrown) {
    process.stdout.write(`${JSON.stringify({ ok: false, error: startError(thrown) })}\n`);
    return EXIT_FAILED;
  }
}

/** Listens for the keeper of the VM, once. */
async function awaitLink(site: SiteConfig, peer: string): Promise<PeerLink> {
  const { promise, resolve, reject } = Promise.withResolvers<PeerLink>();
  using door = await openDoor(site, {
    port: 0,
    onLink: (link, name) => (name === peer ? resolve(link) : link.close()),
  });
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
