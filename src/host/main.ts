/**
 * The daemon that owns the VMs of this machine, started by `understudy host` or by systemd:
 *
 *   node src/host/main.ts [--state DIRECTORY] [--socket PATH]
 *
 * It listens on a unix socket for those of its group. Its log goes to standard error as JSON lines. SIGTERM and
 * SIGINT end it; the VMs run on, and the next daemon takes them back.
 * Exit codes: 0 it was told to end, 1 it could not start, 70 a fault of the daemon.
 */
import { readFileSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { parseArgs } from 'node:util';
import { ApiServer } from '../api/api-server.ts';
import { systemClock as clock } from '../base/clock.ts';
import { errorFacts, messageOf } from '../base/errors.ts';
import { processLogger } from '../base/logger.ts';
import { makeDirectory } from '../base/make-directory.ts';
import { makeOwnDirectory } from '../control/own-directory.ts';
import { hostSocket, runRoot, stateDirectory } from '../control/run-paths.ts';
import { Host } from './host.ts';

const EXIT_FAILED = 1;
const EXIT_FAULT = 70;

const log = processLogger((line) => process.stderr.write(line), clock.wallMs);
const told = Promise.withResolvers<NodeJS.Signals>();
for (const signal of ['SIGTERM', 'SIGINT'] as const) process.on(signal, told.resolve);
process.on('SIGHUP', () => {});
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
    const { state, socket } = parseArgs({
      options: {
        state: { type: 'string', default: stateDirectory() },
        socket: { type: 'string', default: hostSocket() },
      },
    }).values;
    const specDirectory = join(resolve(state), 'specs');
    const endDirectory = join(resolve(state), 'ends');
    for (const path of [specDirectory, endDirectory]) makeDirectory(path, { mode: 0o700 });
    makeOwnDirectory(runRoot(), { othersMayPass: false });
    const databasePath = join(resolve(state), 'host.db');
    const directories = { specDirectory, endDirectory, stateDirectory: resolve(state) };
    await using host = new Host({ databasePath, ...directories, version: packageVersion(), clock, log });
    await using _server = await ApiServer.listen({ service: host, socketPath: resolve(socket), clock, log });
    log.info('host listens', { socket: resolve(socket), state: resolve(state), pid: process.pid });
    log.info('host ends', { signal: await told.promise });
    return 0;
  } catch (thrown) {
    log.error('host could not start', errorFacts(thrown));
    return EXIT_FAILED;
  }
}

function packageVersion(): string {
  return JSON.parse(readFileSync(new URL('../../package.json', import.meta.url), 'utf8')).version;
}
