import { dirname, resolve } from 'node:path';
import type { Vm } from '../api/resources.ts';
import { type SpecDifference, specDifferences } from '../config/spec-difference.ts';
import { parseVmSpec, readSpec, readVmSpec } from '../config/vm-spec.ts';
import type { VmSpec } from '../config/vm-spec-schema.ts';
import { EXIT_CODES } from './exit-codes.ts';
import { isOwnHost } from './host-choice.ts';
import { type Goal, hostClient, untilVm } from './host-connection.ts';
import { Interruption } from './interruption.ts';
import type { Output } from './output.ts';

export interface ChangeOptions {
  /** Stops the VM and starts it again, if it runs with another specification. */
  readonly restart: boolean;
  readonly wait: Goal;
  readonly timeoutMs: number;
}

/** When what was changed is true of the VM that runs. */
type Effect = 'now' | 'at the next start';

/** Gives a declared VM another specification, unless somebody else does so meanwhile. */
export async function change(
  name: string,
  { specPath, ...options }: ChangeOptions & { readonly specPath: string },
  out: Output,
): Promise<number> {
  const directory = dirname(resolve(specPath));
  const { spec, text } = isOwnHost() ? readVmSpec(specPath) : withoutFiles(specPath, directory);
  const client = hostClient();
  const params = { name };
  const before = await client.call('getVm', { params });
  const differences = specDifferences(specOf(before), spec);
  const isSame = before.spec === text && before.directory === directory;
  // The version that was compared, or none: what somebody else wrote meanwhile is not overwritten unseen.
  const headers = { 'if-match': `"${before.version}"` };
  const changed = isSame
    ? before
    : await client.call('changeVm', { params, headers, body: { spec: text, directory } });
  const isOutdated = changed.observed.version !== null && changed.observed.version !== changed.version;
  const goal = spec.shadow.enabled || options.wait === 'none' ? options.wait : 'started';
  const restarts = options.restart && isOutdated;
  const vm = restarts ? await restart(name, { ...options, wait: goal }, out) : changed;
  const effect: Effect = restarts || vm.observed.version === vm.version ? 'now' : 'at the next start';
  out.result({ vm, differences, effect }, () => changeText(vm, { differences, effect }));
  return EXIT_CODES.ok.code;
}

/** Files of another machine are not here: the host looks for them. */
function withoutFiles(specPath: string, directory: string): { readonly spec: VmSpec; readonly text: string } {
  const text = readSpec(specPath);
  return { spec: parseVmSpec(text, { source: specPath, directory }), text };
}

async function restart(name: string, { wait, timeoutMs }: ChangeOptions, out: Output): Promise<Vm> {
  const client = hostClient();
  const params = { name };
  // Ctrl-C ends the waiting below, and at no other moment this command: the VM would be left stopped.
  using _interruption = new Interruption();
  try {
    await client.call('stopVm', { params });
    await untilVm(name, { goal: 'absent', timeoutMs, out });
  } finally {
    // Whatever happens to this command, the VM shall run afterwards.
    await client.call('startVm', { params });
  }
  return await untilVm(name, { goal: wait, timeoutMs, out });
}

function specOf({ name, spec, directory }: Vm): VmSpec {
  return parseVmSpec(spec, { source: `${name} at the host`, directory });
}

function changeText(
  { name, version, observed }: Vm,
  { differences, effect }: { differences: readonly SpecDifference[]; effect: Effect },
): string {
  const lines = differences.map(
    ({ field, before, after }) => `  ${field}: ${valueText(before)} → ${valueText(after)}`,
  );
  const what = lines.length === 0 ? 'nothing that matters differs' : 'changed';
  const when =
    observed.version === null
      ? 'it does not run'
      : effect === 'now'
        ? 'it runs with it'
        : 'it takes effect at the next start (--restart)';
  return [`${name}, specification ${version}: ${what}; ${when}`, ...lines].join('\n');
}

function valueText(value: unknown): string {
  return value === undefined ? '(none)' : JSON.stringify(value);
}
