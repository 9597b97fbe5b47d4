/**
 * A host that is killed at a chosen moment of the first request that carries an Idempotency-Key:
 *
 *   node test/kit/crashing-host.ts DIRECTORY never|answered|committed|apart
 *
 * `answered`: its answer was stored, and the transaction is not committed. `committed`: it is, and the client has not
 * been answered. `apart`: effect and answer in a transaction each, killed between the two, as a control.
 */
import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { ApiServer } from '../../src/api/api-server.ts';
import { systemClock as clock } from '../../src/base/clock.ts';
import { silentLogger as log } from '../../src/base/logger.ts';
import { Host } from '../../src/host/host.ts';

const [folder = '', moment] = process.argv.slice(2);
const endDirectory = join(folder, 'ends');
mkdirSync(endDirectory, { recursive: true });
const settings = { retention: { retentionDays: 365, retentionMax: 100_000 }, lookIntervalMs: 5000 };
const startKeeper = async () => {};
const database = { databasePath: join(folder, 'host.db'), stateDirectory: folder };
const host = new Host({ ...database, endDirectory, startKeeper, settings, version: '0', clock, log });
const { transaction, storeAnswer } = host;
const die = () => process.kill(process.pid, 'SIGKILL');
if (moment === 'answered' || moment === 'apart') {
  host.storeAnswer = (key, answer) => {
    if (moment === 'answered') storeAnswer.call(host, key, answer);
    die();
  };
}
if (moment === 'apart') host.transaction = (work) => work();
if (moment === 'committed') {
  host.transaction = (work) => {
    const result = transaction.call(host, work) as ReturnType<typeof work>;
    die();
    return result;
  };
}
await ApiServer.listen({ service: host, socketPath: join(folder, 'host.sock'), clock, log });
process.stdout.write('listens\n');
