import type { HostEvent } from '../api/resources.ts';
import { factsText, localTime } from './event-text.ts';
import { EXIT_CODES } from './exit-codes.ts';
import { hostClient } from './host-connection.ts';
import { Interruption } from './interruption.ts';
import type { Output } from './output.ts';

const PAGE_EVENTS = 1000;

export interface HostEventsOptions {
  readonly vm: string | undefined;
  readonly follow: boolean;
  /** Only events after this number; undefined: all, or with `follow` those to come. */
  readonly since: number | undefined;
}

/** The events of the host: what it did itself, and what it heard of all keepers, also of those that are gone. */
export async function hostEvents({ vm, follow, since }: HostEventsOptions, out: Output): Promise<number> {
  using interruption = new Interruption();
  const { signal } = interruption;
  const show = (event: HostEvent) => out.result(event, () => hostEventText(event));
  const ofVm = vm === undefined ? {} : { vm };
  if (follow) {
    const after = since === undefined ? {} : { after: since };
    for await (const event of hostClient().events({ ...after, ...ofVm, signal })) show(event);
  }
  for (let after: number | null = since ?? 0; after !== null; ) {
    const query: object = { after, limit: PAGE_EVENTS, ...ofVm };
    const page = await hostClient().call('listEvents', { query }, signal);
    for (const event of page.events) show(event);
    after = page.next;
  }
  return EXIT_CODES.ok.code;
}

/** `14:03:07.123  812  redis-demo  promoted  token 2  instance=2` */
function hostEventText({ id, time, vm, kind, token, facts }: HostEvent): string {
  const acted = token === null ? [] : [`token ${token}`];
  return [localTime(time), id, vm ?? 'host', kind, ...acted, factsText(facts)].join('  ').trimEnd();
}
