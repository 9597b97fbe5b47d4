import { expect, it } from 'vitest';
import { FitThread } from './fit-thread.ts';
import { type FitRequest, fitSeasonal } from './seasonal-fit.ts';

const request: FitRequest = {
  kind: 'ets',
  values: Float64Array.from({ length: 100 }, (_, step) => 50 + 10 * Math.sin(step)),
  periods: [],
  horizon: 5,
};
const fitOf = (thread: FitThread, wanted: FitRequest) =>
  new Promise<Float64Array | undefined>((resolve) => thread.schedule(wanted, resolve));

it('another thread fits as this one does, one after another', async () => {
  await using thread = new FitThread();
  const fits = await Promise.all([fitOf(thread, request), fitOf(thread, { ...request, horizon: 7 })]);
  expect(fits[0]).toEqual(fitSeasonal(request));
  expect(fits[1]).toHaveLength(7);
});

it('what is asked for while the queue is full is refused, the rest is made', async () => {
  await using thread = new FitThread({ waitingMax: 1 });
  const fits = [fitOf(thread, request), fitOf(thread, request), fitOf(thread, request)];
  expect(await Promise.all(fits)).toEqual([expect.any(Float64Array), expect.any(Float64Array), undefined]);
});

it('a thread that dies refuses what it was at, and the next one goes on', async () => {
  await using thread = new FitThread();
  // What cannot be iterated makes it throw.
  const fatal = { ...request, values: null } as unknown as FitRequest;
  expect(await fitOf(thread, fatal)).toBeUndefined();
  expect(await fitOf(thread, request)).toHaveLength(5);
});

it('a thread that is closed refuses what waits and what is asked for then', async () => {
  const thread = new FitThread();
  const fits = [fitOf(thread, request), fitOf(thread, request)];
  await thread[Symbol.asyncDispose]();
  expect(await fits[1]).toBeUndefined();
  expect(await fitOf(thread, request)).toBeUndefined();
});
