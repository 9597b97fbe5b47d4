/**
 * Backup and restoration of a host's state, started by `understudy backup` and `understudy restore`:
 *
 *   node src/host/archive-main.ts backup --state DIRECTORY FILE
 *   node src/host/archive-main.ts restore --state DIRECTORY [--keep-tokens] FILE
 *
 * Works on the files and asks no daemon: who may write them is who may do this. One line of JSON on standard output
 * tells the outcome, `{"ok": true, …}` or `{"ok": false, "error": {…}}`. Exit codes: 0 done, 1 failed.
 */
import { join, resolve } from 'node:path';
import { parseArgs } from 'node:util';
import { systemClock as clock } from '../base/clock.ts';
import { messageOf, UnderstudyError } from '../base/errors.ts';
import { backUp, restore } from './state-archive.ts';

process.exitCode = main();

function main(): number {
  try {
    process.stdout.write(`${JSON.stringify({ ok: true, ...carriedOut() })}\n`);
    return 0;
  } catch (thrown) {
    const error =
      thrown instanceof UnderstudyError
        ? thrown.toJSON()
        : { code: 'HOST_BACKUP_FAILED', message: messageOf(thrown) };
    process.stdout.write(`${JSON.stringify({ ok: false, error })}\n`);
    return 1;
  }
}

function carriedOut(): object {
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: { state: { type: 'string' }, 'keep-tokens': { type: 'boolean', default: false } },
  });
  const [action, file] = positionals;
  if (values.state === undefined || file === undefined) throw new Error('--state and a file are needed');
  const databasePath = join(resolve(values.state), 'host.db');
  const path = resolve(file);
  if (action === 'backup')
    return backUp(databasePath, { target: path, draft: `${path}.${process.pid}.part` });
  if (action === 'restore')
    return restore(databasePath, { source: path, stamp: stamp(), keepTokens: values['keep-tokens'] });
  throw new Error(`there is no ${action}`);
}

/** Sorts by time, and may stand in the name of a file: 20260131T140307Z. */
function stamp(): string {
  const iso = new Date(clock.wallMs()).toISOString();
  return `${iso.slice(0, 19).replace(/[-:]/g, '')}Z`;
}
