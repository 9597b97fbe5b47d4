/**
 * The process that answers for this host when another one of the site wants a place for a shadow: it starts a keeper for
 * it. The keepers outlive it, as VMs outlive the host's daemon.
 *
 *   node src/keeper/site-main.ts [--text]
 *
 * One line on standard output says that it listens, `{"ok": true, "port": …}`, or why not; with `--text` in words, the latter on standard error. SIGTERM and
 * SIGINT end it. The exit code is 2 where its configuration is at fault, as of every command, and 1 for anything else.
 */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import { z } from 'zod';
import { systemClock as clock } from '../base/clock.ts';
import { messageOf } from '../base/errors.ts';
import { loadSiteConfig, type SiteConfig, siteConfigPath } from '../config/site-config.ts';
import { sweepRelics } from '../control/relic.ts';
import { RunDirectory } from '../control/run-directory.ts';
import type { PeerLink } from '../replication/peer-link.ts';
import { decodeWords, encodeWords, garbled, MESSAGE, type PeerWords } from '../replication/peer-messages.ts';
import { assertNoMaintenance } from '../site/maintenance.ts';
import { exposureOf } from '../site/site-credentials.ts';
import { siteLeaseStore } from '../site/site-lease-store.ts';
import { hostResources } from './host-resources.ts';
import { startError } from './keeper-life.ts';
import { openDoor, portOf, SecurePeerLink } from './peer-door.ts';
import { type Place, PlaceBook } from './place-book.ts';

const SHADOW = fileURLToPath(new URL('./shadow-main.ts', import.meta.url));
const isForPeople = process.argv.includes('--text');
const SWEEP_MS = 3000;
const EXIT = { failed: 1, configuration: 2 } as const;
const OF_CONFIGURATION: readonly unknown[] = ['CONFIG_INVALID', 'CONFIG_NOT_FOUND', 'KEEPER_SITE_REFUSED'];
const VM_NAME = /^[a-z0-9][a-z0-9-]{0,39}$/;

const outcomeSchema = z.union([
  z.object({ ok: z.literal(true), port: z.int() }),
  z.object({
    ok: z.literal(false),
    error: z.object({ code: z.string(), message: z.string(), hint: z.string().optional() }),
  }),
]);

const places = new PlaceBook({
  clock,
  kept: () =>
    RunDirectory.list()
      .filter(({ keeper }) => keeper === 'alive')
      .map(({ name }) => name),
});

type Placed = Extract<PeerWords, { kind: 'placed' | 'refused' }>;

for (const stream of [process.stdout, process.stderr]) stream.on('error', () => {});
process.exitCode = await main();
process.exit();

async function main(): Promise<number> {
  const ended = Promise.withResolvers<void>();
  for (const signal of ['SIGTERM', 'SIGINT'] as const) process.on(signal, () => ended.resolve());
  try {
    const site = loadSiteConfig(siteConfigPath());
    using door = await openDoor(site, {
      port: portOf(site),
      onLink: (link, peer) => void answer(site, { link: new SecurePeerLink(link), peer }),
      onTrouble: (what) => void process.stderr.write(`renewed credentials cannot be used: ${what}\n`),
      onTurnedAway: ({ code, message, hint }, address) =>
        void process.stderr.write(
          `a connection from ${address} came to nothing: ${message} (${code}); ${hint}\n`,
        ),
    });
    const exposed = exposureOf(site.key);
    if (exposed !== undefined) process.stderr.write(`warning: ${exposed}\n`);
    if (isForPeople) say(`host ${site.host} answers at port ${door.port}; Ctrl-C ends that, and no shadow`);
    else say({ ok: true, port: door.port });
    const sweeping = new AbortController();
    void sweepUntilEnd(site, sweeping.signal);
    await ended.promise;
    sweeping.abort();
    return 0;
  } catch (thrown) {
    const error = startError(thrown);
    const hint = error.hint === undefined ? '' : `\nhint: ${error.hint}`;
    if (isForPeople) process.stderr.write(`error ${error.code}: ${error.message}${hint}\n`);
    else say({ ok: false, error });
    return OF_CONFIGURATION.includes(error.code) ? EXIT.configuration : EXIT.failed;
  }
}

function say(what: string | object): void {
  process.stdout.write(`${typeof what === 'string' ? what : JSON.stringify(what)}\n`);
}

/** Memory that was put aside is of use only while its VM acts on another host. */
async function sweepUntilEnd(site: SiteConfig, signal: AbortSignal): Promise<void> {
  const store = siteLeaseStore(site, { clock });
  while (!signal.aborted) {
    try {
      await sweepRelics(async (vm) => {
        const { record } = await store.read(vm);
        return record === undefined || record.mode === 'ended' || record.holder === site.host;
      });
    } catch (thrown) {
      process.stderr.write(`looking for memory that was put aside: ${messageOf(thrown)}\n`);
    }
    await clock.sleep(SWEEP_MS, signal).catch(() => {});
  }
}

interface Caller {
  readonly link: PeerLink;
  readonly peer: string;
}

async function answer(site: SiteConfig, { link, peer }: Caller): Promise<void> {
  try {
    for await (const { type, body } of link.messages()) {
      const words = type === MESSAGE.words ? decodeWords(body) : undefined;
      const said = words?.kind === 'ask-resources' ? resourcesFor(site, words.vm) : await place(words, peer);
      await link.send(MESSAGE.words, [encodeWords(said)]);
    }
  } catch (thrown) {
    process.stderr.write(`${peer}: ${messageOf(thrown)}\n`);
  } finally {
    link.close();
  }
}

function resourcesFor(site: SiteConfig, vm: string): PeerWords {
  return { kind: 'resources', resources: hostResources(site, vm) };
}

async function place(words: PeerWords | undefined, peer: string): Promise<Placed> {
  if (words?.kind !== 'place') throw garbled('something else than a request for a place');
  const { vm } = words;
  if (!VM_NAME.test(vm))
    return { kind: 'refused', code: 'KEEPER_PEER_REFUSED', message: 'that is no name of a VM' };
  try {
    assertNoMaintenance(vm);
    return await placeShadow(places.take(vm, peer));
  } catch (thrown) {
    const { code, message, hint } = startError(thrown);
    return { kind: 'refused', code, message, ...(typeof hint === 'string' && { hint }) };
  }
}

/** A keeper of its own, which lives on when this process ends. */
async function placeShadow(place: Place): Promise<Placed> {
  const { vm, peer } = place;
  const child = spawn(process.execPath, [SHADOW, '--vm', vm, '--peer', peer], {
    ...{ detached: true, cwd: '/', stdio: ['ignore', 'pipe', 'ignore'] },
  });
  // What kept it from being started shows as its end.
  child.on('error', () => {});
  child.on('close', () => place[Symbol.dispose]());
  try {
    const lines = createInterface({ input: child.stdout });
    const first = await Promise.race([
      once(lines, 'line').then(([line]) => String(line)),
      once(child, 'close').then(() => undefined),
    ]);
    const outcome = first === undefined ? undefined : outcomeSchema.safeParse(JSON.parse(first)).data;
    if (outcome?.ok === true) return { kind: 'placed', port: outcome.port };
    const error = outcome?.error ?? {
      code: 'KEEPER_START_FAILED',
      message: 'its keeper ended before it had started',
    };
    return { kind: 'refused', ...error };
  } finally {
    child.stdout.destroy();
    child.unref();
  }
}
