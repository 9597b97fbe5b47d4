import type { Vm } from '../api/resources.ts';
import { systemClock as clock } from '../base/clock.ts';
import { formatBytes } from '../base/units.ts';
import { EXIT_CODES } from './exit-codes.ts';
import { hostClient } from './host-connection.ts';
import { duration, type Output, table } from './output.ts';

type Kind = keyof Vm['saved'];
const KINDS: readonly Kind[] = ['suspended', 'snapshot'];

/** All states that the host has saved. */
export async function listStates(out: Output): Promise<number> {
  const states = (await allVms()).flatMap(({ name, saved }) =>
    KINDS.flatMap((kind) => (saved[kind] === null ? [] : [{ name, kind, ...saved[kind] }])),
  );
  out.result({ states }, () => {
    if (states.length === 0) return 'no state is saved';
    const rows = states.map(({ name, kind, savedAt, sizeBytes, epoch, problem }) => [
      name,
      kind,
      sizeBytes === null ? '-' : formatBytes(sizeBytes),
      savedAt === null ? '-' : duration(Math.max(0, clock.wallMs() - Date.parse(savedAt))),
      problem === null ? `epoch ${epoch}` : problem.code,
    ]);
    return table([['NAME', 'KIND', 'SIZE', 'AGE', ''], ...rows]);
  });
  return EXIT_CODES.ok.code;
}

/** Removes a state of a VM that does not run. */
export async function removeState(
  name: string,
  { suspended }: { suspended: boolean },
  out: Output,
): Promise<number> {
  const kind: Kind = suspended ? 'suspended' : 'snapshot';
  await hostClient().call('deleteSavedState', { params: { name, kind } });
  out.result({ name, kind, removed: true }, () =>
    suspended ? `${name} boots anew at its next start` : `the snapshot of ${name} is removed`,
  );
  return EXIT_CODES.ok.code;
}

async function allVms(): Promise<Vm[]> {
  const vms: Vm[] = [];
  let after: string | undefined;
  do {
    const page = await hostClient().call('listVms', { query: { ...(after !== undefined && { after }) } });
    vms.push(...page.vms);
    after = page.next ?? undefined;
  } while (after !== undefined);
  return vms;
}
