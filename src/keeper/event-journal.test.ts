import { describe, expect, it } from 'vitest';
import { epochId } from '../epoch/epoch-id.ts';
import { EventJournal, HeldEvents } from './event-journal.ts';

describe('the event journal', () => {
  it('numbers events, writes each as a line and tells listeners', () => {
    const lines: string[] = [];
    const heard: number[] = [];
    const journal = new EventJournal({ vm: 'a', wallMs: () => 0, write: (line) => lines.push(line) });
    journal.publish('started', { epoch: epochId(0), token: 0 });
    const stop = journal.onEvent((event) => heard.push(event.seq));
    journal.publish('protected', { epoch: epochId(3), token: 2, facts: { pid: 7 } });
    stop();
    journal.publish('stopped', { epoch: epochId(4), token: 2 });
    expect(heard).toEqual([2]);
    expect(journal.since(1).map((event) => event.kind)).toEqual(['protected', 'stopped']);
    expect(JSON.parse(lines[1] ?? '')).toEqual({
      seq: 2,
      time: '1970-01-01T00:00:00.000Z',
      vm: 'a',
      kind: 'protected',
      token: 2,
      epoch: 3,
      facts: { pid: 7 },
    });
  });
});

describe('held events', () => {
  const held = () => {
    const published: string[] = [];
    const events = new HeldEvents<string>((event) => published.push(event));
    return { published, events };
  };

  it('are published only when their epoch is committed', () => {
    const { published, events } = held();
    events.hold();
    events.add('reset');
    events.seal(epochId(1));
    events.add('shutdown');
    expect(published).toEqual([]);
    events.commit(epochId(1));
    expect(published).toEqual(['reset']);
  });

  it('of an aborted epoch join the next one', () => {
    const { published, events } = held();
    events.hold();
    events.add('reset');
    events.seal(epochId(1));
    events.abort(epochId(1));
    events.seal(epochId(2));
    events.commit(epochId(2));
    expect(published).toEqual(['reset']);
  });

  it('that were not committed never happened after a failover', () => {
    const { published, events } = held();
    events.hold();
    events.add('shutdown');
    events.forget();
    events.pass();
    expect(published).toEqual([]);
  });
});
