import { stripVTControlCharacters } from 'node:util';
import { describe, expect, it } from 'vitest';
import { type DemoMeasurements, demoReport, isFlawless, killToReplyMs, reportText } from './demo-report.ts';

const timing = (sentMs: number, repliedMs: number) => ({ sentMs, repliedMs });

const MEASURED: DemoMeasurements = {
  accel: 'tcg',
  qemu: '7.2.22',
  epochs: 4321,
  pauses: [
    { pauseMs: { count: 9, p50: 1.5, p99: 4, max: 5 }, pauseShare: 0.1 },
    { pauseMs: { count: 9, p50: 1.25, p99: 9, max: 9.5 }, pauseShare: 0.25 },
    { pauseMs: { count: 9, p50: 2, p99: 6, max: 6.5 }, pauseShare: 0.25 },
  ],
  unprotected: [timing(0, 0.5), timing(20, 20.75), timing(40, 41)],
  protected: [timing(0, 2), timing(20, 22.25)],
  failovers: [
    { promoteMs: 9.004, killToReplyMs: 30 },
    { promoteMs: 11, killToReplyMs: null },
    { promoteMs: 8, killToReplyMs: 35.5 },
  ],
  ackedWrites: 12345,
  lostWrites: 0,
  connections: { total: 4, survived: 4 },
  guestRebooted: false,
  guestClockErrorMs: -7.128,
};

describe('the report of a demo', () => {
  it('sums the measurements up under the names that scripts rely on', () => {
    expect(demoReport(MEASURED)).toEqual({
      accel: 'tcg',
      qemu: '7.2.22',
      kills: 3,
      epochs: 4321,
      pauseMs: { p50: 1.5, p99: 9, max: 9.5 },
      pauseShare: 0.2,
      roundTripMs: { unprotected: { p50: 0.75, p99: 1 }, protected: { p50: 2, p99: 2.25 } },
      promoteMs: { p50: 9, max: 11 },
      killToReplyMs: { p50: 30, max: 35.5 },
      ackedWrites: 12345,
      lostWrites: 0,
      connectionsSurvived: 4,
      connectionsTotal: 4,
      guestRebooted: false,
      guestClockErrorMs: 7.13,
    });
  });

  it('says none where no kill met an open request', () => {
    const report = demoReport({ ...MEASURED, failovers: [{ promoteMs: 9, killToReplyMs: null }] });
    expect(report.killToReplyMs).toEqual({ p50: null, max: null });
    expect(reportText(report)).toMatch(/open reply +none +none/);
  });

  it('is flawless only if nothing was lost, nobody cut off and the guest not rebooted', () => {
    expect(isFlawless(demoReport(MEASURED))).toBe(true);
    const flaws: Partial<DemoMeasurements>[] = [
      { lostWrites: 1 },
      { connections: { total: 4, survived: 3 } },
      { guestRebooted: true },
    ];
    for (const flaw of flaws) expect(isFlawless(demoReport({ ...MEASURED, ...flaw }))).toBe(false);
  });

  it('is a table that a person can read', () => {
    expect(stripVTControlCharacters(reportText(demoReport(MEASURED)))).toBe(
      [
        'A Redis VM whose QEMU was killed 3 times',
        'QEMU 7.2.22, tcg, no persistence, one shadow on the same machine',
        '',
        '                                   median      p99     worst',
        '  round trip, unprotected          0.8 ms   1.0 ms',
        '  round trip, protected            2.0 ms   2.3 ms',
        '  pause of an epoch, under load    1.5 ms   9.0 ms    9.5 ms',
        '  promotion of the shadow          9.0 ms            11.0 ms',
        '  kill -9 to the open reply       30.0 ms            35.5 ms',
        '',
        '  4,321 epochs committed; the guest stood still for 20 % of the time',
        "  the guest's clock is 7 ms off",
        '',
        '  ✔ 12,345 writes acknowledged, 0 lost',
        '  ✔ 4 of 4 open TCP connections survived',
        '  ✔ the guest did not reboot',
      ].join('\n'),
    );
  });
});

describe('the time from a kill to a reply', () => {
  const moment = { killMs: 100, discoveredMs: 103 };

  it('ends with the first reply to a request that was open at the kill', () => {
    expect(killToReplyMs([timing(99, 140), timing(90, 130), timing(101, 125)], moment)).toBe(30);
  });

  it('leaves out replies that came before the loss was discovered: they were on their way already', () => {
    expect(killToReplyMs([timing(99, 101), timing(98, 135)], moment)).toBe(35);
  });

  it('is unknown when every open reply was on its way already', () => {
    expect(killToReplyMs([timing(99, 101), timing(101, 140)], moment)).toBeNull();
  });
});
