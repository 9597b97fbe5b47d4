import { randomUUID } from 'node:crypto';
import { readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { z } from 'zod';
import { makeDirectory } from '../base/make-directory.ts';
import { KeeperError } from './keeper-error.ts';
import { keeperWishesSchema } from './keeper-wishes.ts';
import { runRoot } from './run-paths.ts';
import { type StartOutcome, startOutcomeSchema } from './start-outcome.ts';

/**
 * A keeper that is started as a systemd unit has no pipe to whoever wants it. What it is to keep lies in a file, and
 * how its start came out in another. Beside the run directories and not in one of them: a start that fails takes its
 * run directory with it. The leading dot keeps the folder out of the list of VMs.
 */
const FOLDER = '.orders';

const orderSchema = z.object({
  /** Its outcome carries the same: that of an earlier start is not taken for it. */
  id: z.string(),
  /** Where the specification came from, for messages and relative paths. */
  source: z.string(),
  spec: z.string(),
  wishes: keeperWishesSchema,
});

const answerSchema = z.object({ order: z.string(), outcome: startOutcomeSchema });

type KeeperOrder = z.infer<typeof orderSchema>;

/** Writes down what the next keeper of this name is to keep; replaces what nobody has taken. */
export function placeOrder(vm: string, given: Omit<KeeperOrder, 'id'>): KeeperOrder {
  const order = { id: randomUUID(), ...given };
  const { order: path, outcome } = pathsOf(vm);
  makeDirectory(dirname(path), { mode: 0o700 });
  rmSync(outcome, { force: true });
  writeWhole(path, order);
  return order;
}

/**
 * Takes the order away: each is carried out once at most, also when its unit is started again by hand.
 * @throws KeeperError KEEPER_NO_ORDER
 */
export function takeOrder(vm: string): KeeperOrder {
  const { order: path } = pathsOf(vm);
  try {
    const order = orderSchema.parse(JSON.parse(readFileSync(path, 'utf8')));
    rmSync(path);
    return order;
  } catch (cause) {
    throw new KeeperError('KEEPER_NO_ORDER', `nobody has said what the keeper of ${vm} is to keep`, {
      hint: `Units of keepers are started by the host: \`understudy start ${vm}\`.`,
      facts: { vm, path },
      cause,
    });
  }
}

export function answerOrder(vm: string, order: string, { outcome }: { outcome: StartOutcome }): void {
  writeWhole(pathsOf(vm).outcome, { order, outcome });
}

/** Undefined while there is none, and when what lies there is that of another start. */
export function outcomeOf(vm: string, order: KeeperOrder): StartOutcome | undefined {
  try {
    const answer = answerSchema.parse(JSON.parse(readFileSync(pathsOf(vm).outcome, 'utf8')));
    return answer.order === order.id ? answer.outcome : undefined;
  } catch {
    return undefined;
  }
}

/** Nobody waits for it any more. */
export function dropOrder(vm: string): void {
  for (const path of Object.values(pathsOf(vm))) rmSync(path, { force: true });
}

function pathsOf(vm: string): { readonly order: string; readonly outcome: string } {
  const folder = join(runRoot(), FOLDER);
  return { order: join(folder, `${vm}.json`), outcome: join(folder, `${vm}.outcome.json`) };
}

/** Whoever reads finds the whole of it or nothing. */
function writeWhole(path: string, value: unknown): void {
  writeFileSync(`${path}.new`, JSON.stringify(value), { mode: 0o600 });
  renameSync(`${path}.new`, path);
}
