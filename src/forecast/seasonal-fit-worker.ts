/** Runs in a thread of its own: fits take up to a second, and whoever samples and answers must not wait for them. */
import { parentPort } from 'node:worker_threads';
import { type FitRequest, fitSeasonal } from './seasonal-fit.ts';

parentPort?.on('message', (request: FitRequest) => {
  parentPort?.postMessage(fitSeasonal(request));
});
