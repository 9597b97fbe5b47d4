/**
 * `node_modules/.bin/node bench/learnt-weights.ts`: trains the network of the learnt model on synthetic workloads, and writes
 * src/forecast/learnt-weights.ts. About 40 s of one core; the same sources give the same file.
 */
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import {
  FULL_PLAN,
  heldOutLoss,
  heldOutPlan,
  REHEARSAL_PLAN,
  trainedWeights,
  weightsDigest,
  weightsText,
} from '../src/forecast/learnt-training.ts';

const LINE_CHARACTERS = 100;
const PATH = join(import.meta.dirname, '../src/forecast/learnt-weights.ts');

const rehearsal = weightsDigest(trainedWeights(REHEARSAL_PLAN));
const weights = trainedWeights(FULL_PLAN, (epoch, loss) => {
  process.stdout.write(`epoch ${epoch + 1} of ${FULL_PLAN.epochs}: loss ${loss.toFixed(5)}\n`);
});
const loss = heldOutLoss(weights, heldOutPlan());
process.stdout.write(`on other workloads: ${loss.toFixed(5)}\n`);
const lines = weightsText(weights).match(new RegExp(`.{1,${LINE_CHARACTERS}}`, 'g')) ?? [];
writeFileSync(
  PATH,
  `/**
 * Written by \`node bench/learnt-weights.ts\`, which trains it on synthetic workloads alone; see docs/forecast-models.md.
 * \`rehearsal\` is the SHA-256 of the weights of a short training with the same sources, which a test repeats.
 */
export const LEARNT_WEIGHTS = {
  rehearsal: '${rehearsal}',
  digest: '${weightsDigest(weights)}',
  heldOutLoss: ${Number(loss.toFixed(5))},
  base64: [
${lines.map((line) => `    '${line}',`).join('\n')}
  ],
} as const;
`,
);
