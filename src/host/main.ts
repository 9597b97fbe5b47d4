/**
 * The daemon that owns the VMs of this machine, started by `understudy host` or by systemd:
 *
 *   node src/host/main.ts [--config PATH] [--state DIRECTORY] [--socket PATH]
 *     [--listen ADDRESS:PORT --tls-cert FILE --tls-key FILE [--client-ca FILE]]
 *
 * docs/host-configuration.md explains its configuration. It listens on a unix socket for those of its group,
 * and over TLS for those who show a token or a certificate. Its log
 * goes to standard error as JSON lines. SIGHUP has it read the configuration and the files for TLS again; SIGTERM and SIGINT end it; the VMs
 * run on, and the next daemon takes them back.
 * Exit codes: 0 it was told to end, 1 it could not start, 70 a fault of the daemon, 78 its configuration is wrong.
 */
import { readFileSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { parseArgs } from 'node:util';
import { ApiServer } from '../api/api-server.ts';
import { TlsFiles } from '../api/tls-files.ts';
import type { SocketAccess } from '../api/unix-listener.ts';
import { systemClock as clock } from '../base/clock.ts';
import { errorFacts, messageOf } from '../base/errors.ts';
import { jsonLogger, type LogLevel, levelledLogger, logLevelFrom } from '../base/logger.ts';
import { makeDirectory } from '../base/make-directory.ts';
import { ConfigError } from '../config/config-error.ts';
import {
  changedKeys,
  environmentOf,
  type HostConfigPlace,
  hostConfigPlace,
  loadHostConfig,
} from '../config/host-config.ts';
import type { HostConfig } from '../config/host-config-schema.ts';
import { keepersAreUnits, startKeeperUnit, systemdRuns } from '../control/keeper-unit.ts';
import { makeOwnDirectory } from '../control/own-directory.ts';
import { dropOldRelics } from '../control/relic.ts';
import { hostSocket, runRoot, stateDirectory } from '../control/run-paths.ts';
import { groupIdOf } from '../linux/group.ts';
import { ServiceManager } from '../linux/service-manager.ts';
import { openSeriesStore } from '../telemetry/open-series-store.ts';
import type { SeriesStore } from '../telemetry/series-store.ts';
import { Host, type HostSettings } from './host.ts';
import { HostError } from './host-error.ts';
import { type StartKeeper, startDirectly } from './keeper-starters.ts';

const EXIT_FAILED = 1;
const EXIT_FAULT = 70;
/** sysexits.h: systemd does not try again. */
const EXIT_CONFIG = 78;
const DEFAULT_GROUP = 'understudy';

let logLevel: LogLevel = 'info';
const log = levelledLogger(
  jsonLogger((line) => process.stderr.write(line), clock.wallMs, { level: 'debug' }),
  () => logLevel,
);
const told = Promise.withResolvers<NodeJS.Signals>();
for (const signal of ['SIGTERM', 'SIGINT'] as const) process.on(signal, told.resolve);
let reload = () => {};
process.on('SIGHUP', () => reload());
// Keepers do not depend on this process: to end it is the safe thing to do when nobody knows its state.
for (const event of ['uncaughtException', 'unhandledRejection'] as const) {
  process.on(event, (fault: unknown) => {
    log.error('a fault of the daemon', {
      error: messageOf(fault),
      stack: fault instanceof Error ? fault.stack : undefined,
    });
    process.exit(EXIT_FAULT);
  });
}
process.exitCode = await main();
process.exit();

async function main(): Promise<number> {
  try {
    const flags = parseArgs({
      options: {
        config: { type: 'string' },
        state: { type: 'string' },
        socket: { type: 'string' },
        listen: { type: 'string' },
        'tls-cert': { type: 'string' },
        'tls-key': { type: 'string' },
        'client-ca': { type: 'string' },
      },
    }).values;
    const place = hostConfigPlace(flags.config);
    const config = loadHostConfig(place);
    logLevel = levelOf(config);
    const tls = tlsOf(flags, config.listen);
    Object.assign(process.env, environmentOf(config, process.env));
    const state = resolve(flags.state ?? stateDirectory());
    const socketPath = resolve(flags.socket ?? hostSocket());
    const socketAccess = accessOf(config.socket);
    const specDirectory = join(state, 'specs');
    const endDirectory = join(state, 'ends');
    for (const path of [specDirectory, endDirectory]) makeDirectory(path, { mode: 0o700 });
    // The socket lies in there by default.
    makeOwnDirectory(runRoot(), { othersMayPass: socketAccess.groupId !== undefined });
    dropOldRelics();
    using manager = ServiceManager.of(process.env, { clock, log });
    await using store = await storeOf(config, state);
    await using host = new Host({
      ...(store !== undefined && { store }),
      databasePath: join(state, 'host.db'),
      endDirectory,
      stateDirectory: state,
      startKeeper: keeperStarter(config.keepers.start, specDirectory),
      settings: settingsOf(config),
      version: packageVersion(),
      clock,
      log,
    });
    await using server = await ApiServer.listen({
      service: host,
      socketPath,
      socketAccess,
      tls,
      clock,
      log,
    });
    reload = reloader(config, { place, host, manager, tls });
    log.info('host listens', { socket: socketPath, tls: server.tlsAddress, state, pid: process.pid });
    manager.ready(`API on ${socketPath}`);
    const signal = await told.promise;
    manager.stopping();
    log.info('host ends', { signal });
    return 0;
  } catch (thrown) {
    log.error('host could not start', errorFacts(thrown));
    return thrown instanceof ConfigError ? EXIT_CONFIG : EXIT_FAILED;
  }
}

/** A host looks after its VMs also where nothing can be kept of what they use. */
async function storeOf(config: HostConfig, state: string): Promise<SeriesStore | undefined> {
  try {
    return await openSeriesStore(config.telemetry, { directory: join(state, 'telemetry') });
  } catch (thrown) {
    log.error('samples are not kept: their store cannot be opened', errorFacts(thrown));
    return undefined;
  }
}

interface TlsFlags {
  readonly listen?: string | undefined;
  readonly 'tls-cert'?: string | undefined;
  readonly 'tls-key'?: string | undefined;
  readonly 'client-ca'?: string | undefined;
}

/**
 * Flags win over the configuration.
 * @throws ConfigError CONFIG_INVALID where something is missing: TCP without TLS is not offered
 */
function tlsOf(flags: TlsFlags, config: HostConfig['listen']): TlsFiles | undefined {
  const address = flags.listen ?? config?.address;
  const certificate = flags['tls-cert'] ?? config?.certificate;
  const key = flags['tls-key'] ?? config?.key;
  const clientCa = flags['client-ca'] ?? config?.clientCa;
  if ([address, certificate, key, clientCa].every((given) => given === undefined)) return undefined;
  if (address !== undefined && certificate !== undefined && key !== undefined)
    return new TlsFiles({ address, certificate, key, clientCa });
  throw new ConfigError('CONFIG_INVALID', 'to listen takes an address, a certificate and its key', {
    hint: 'Give --listen, --tls-cert and --tls-key, or `listen` in the configuration. `understudy pki init` makes certificates.',
  });
}

/** The environment wins over the file, as it does for directories; keepers inherit it. */
function levelOf({ log: { level } }: HostConfig): LogLevel {
  const { UNDERSTUDY_LOG_LEVEL: word } = process.env;
  if (!word) return level;
  const wanted = logLevelFrom(process.env);
  if (wanted === undefined) log.warn('UNDERSTUDY_LOG_LEVEL is no level', { given: word, instead: level });
  return wanted ?? level;
}

function settingsOf({ events, reconcile }: HostConfig): HostSettings {
  return { retention: events, lookIntervalMs: reconcile.intervalMs };
}

/** @throws HostError HOST_GROUP_UNKNOWN */
function accessOf({ group, mode }: HostConfig['socket']): SocketAccess {
  if (group === undefined) {
    return { mode, groupId: process.geteuid?.() === 0 ? groupIdOf(DEFAULT_GROUP) : undefined };
  }
  const groupId = groupIdOf(group);
  if (groupId !== undefined) return { mode, groupId };
  throw new HostError('HOST_GROUP_UNKNOWN', `there is no group ${group} to open the socket to`, {
    hint: `Make it with \`groupadd --system ${group}\`, or correct socket.group.`,
    facts: { group },
  });
}

/** @throws HostError HOST_NO_SYSTEMD */
function keeperStarter(setting: HostConfig['keepers']['start'], specDirectory: string): StartKeeper {
  const surroundings = { systemdRuns: systemdRuns(), cgroup: readFileSync('/proc/self/cgroup', 'utf8') };
  if (setting === 'systemd' && !surroundings.systemdRuns) {
    throw new HostError('HOST_NO_SYSTEMD', 'keepers are to be units, and systemd does not run here', {
      hint: 'Set keepers.start to auto or direct.',
    });
  }
  const asUnits = keepersAreUnits(setting, surroundings);
  log.info('how keepers are started', { as: asUnits ? 'units of systemd' : 'processes of their own' });
  return asUnits ? startKeeperUnit : startDirectly(specDirectory);
}

interface Reloaded {
  readonly place: HostConfigPlace | undefined;
  readonly host: Host;
  readonly manager: ServiceManager;
  readonly tls: TlsFiles | undefined;
}

/**
 * Reads the configuration again, applies what can be, and says what cannot; then the files for TLS. What is wrong changes
 * nothing.
 */
function reloader(inUse: HostConfig, { place, host, manager, tls }: Reloaded): () => void {
  let current = inUse;
  return () => {
    manager.tell({ RELOADING: 1, MONOTONIC_USEC: Number(process.hrtime.bigint() / 1000n) });
    try {
      const next = loadHostConfig(place);
      const { applied, needRestart } = changedKeys(current, next);
      host.apply(settingsOf(next));
      // What needs a restart stays as it is, and is told again at the next reload.
      current = { ...current, log: next.log, events: next.events, reconcile: next.reconcile };
      // Whoever asked for it wants to read this, however little is logged otherwise.
      logLevel = 'info';
      log.info('configuration read again', { path: place?.path, applied, needRestart });
      logLevel = levelOf(next);
    } catch (thrown) {
      log.error('configuration is not taken over', errorFacts(thrown));
    }
    if (tls !== undefined) renewTls(tls, host);
    manager.tell({ READY: 1 });
  };
}

/** Where they are as they were there is nothing to tell. */
function renewTls(tls: TlsFiles, host: Host): void {
  try {
    if (tls.renew() === 'unchanged') return;
    const { certificate, validTo } = tls;
    log.info('TLS files read again', { certificate, validTo });
    host.note('tls-renewed', { certificate, validTo });
  } catch (thrown) {
    log.error('TLS files are not taken over', errorFacts(thrown));
    host.note('tls-refused', errorFacts(thrown));
  }
}

function packageVersion(): string {
  return JSON.parse(readFileSync(new URL('../../package.json', import.meta.url), 'utf8')).version;
}
