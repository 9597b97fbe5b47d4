import { readFileSync } from 'node:fs';
import { eventsPathOf, type FoundVm, RunDirectory } from '../control/run-directory.ts';
import type { VmEvent } from '../control/vm-event.ts';
import { errnoNameOf } from '../linux/linux-error.ts';
import { eventText } from './event-text.ts';
import { EXIT_CODES } from './exit-codes.ts';
import { Interruption } from './interruption.ts';
import type { Output } from './output.ts';
import { findVm, openControl } from './vm-connection.ts';

export interface EventsOptions {
  readonly follow: boolean;
  readonly since: number;
}

/** The events of one VM or of all, oldest first; with `follow` also those to come, until the VMs end. */
export async function events(name: string | undefined, options: EventsOptions, out: Output): Promise<number> {
  using interruption = options.follow ? new Interruption() : undefined;
  const vms = name === undefined ? RunDirectory.list() : [findVm(name)];
  const show = (event: VmEvent) => out.result(event, () => eventText(event));
  const past = (await Promise.all(vms.map((vm) => pastEvents(vm, options.since)))).flat();
  for (const event of past.sort((a, b) => (a.time < b.time ? -1 : 1))) show(event);
  if (interruption === undefined) return EXIT_CODES.ok.code;
  // Not inside of the tasks: when one fails or the person has seen enough, the others are still waiting.
  using controls = new DisposableStack();
  const follow = async ({ name: vm }: FoundVm) => {
    const control = controls.use(await openControl(vm));
    const since = past.findLast((event) => event.vm === vm)?.seq ?? options.since;
    for await (const event of control.events({ since, follow: true })) show(event);
  };
  const alive = vms.filter((vm) => vm.keeper === 'alive');
  await interruption.orInterrupted(Promise.all(alive.map(follow)));
  return EXIT_CODES.ok.code;
}

async function pastEvents(vm: FoundVm, since: number): Promise<VmEvent[]> {
  if (vm.keeper === 'lost') return recordedEvents(vm.name).filter(({ seq }) => seq > since);
  using control = await openControl(vm.name);
  const found: VmEvent[] = [];
  for await (const event of control.events({ since, follow: false })) found.push(event);
  return found;
}

/** What a keeper that is gone wrote down. */
function recordedEvents(name: string): VmEvent[] {
  let text: string;
  try {
    text = readFileSync(eventsPathOf(name), 'utf8');
  } catch (thrown) {
    if (errnoNameOf(thrown) === 'ENOENT') return [];
    throw thrown;
  }
  // The last line may have been cut off with the keeper.
  const lines = text.slice(0, text.lastIndexOf('\n') + 1).split('\n');
  return lines.filter((line) => line !== '').map((line) => JSON.parse(line));
}
