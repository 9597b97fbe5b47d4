/** `npm run soak`: the fault loops run long. `npm test` runs a short form of the same loops. */
export const soaking = process.env.UNDERSTUDY_SOAK === '1';

/** Of the loop over faults of two hosts, each of them to be set by an environment variable. */
export const soakSetting = {
  isLong: soaking,
  /** Decides which faults happen, and when. */
  seed: numberOf('UNDERSTUDY_SOAK_SEED', Math.floor(Math.random() * 2 ** 31)),
  faults: numberOf('UNDERSTUDY_SOAK_FAULTS', soaking ? 200 : 6),
  /** From one host to the other and back. */
  failbacks: numberOf('UNDERSTUDY_SOAK_FAILBACKS', soaking ? 100 : 3),
};

function numberOf(variable: string, otherwise: number): number {
  const given = process.env[variable];
  if (given === undefined) return otherwise;
  const number = Number(given);
  if (!Number.isInteger(number) || number < 0) throw new Error(`${variable} is no number: ${given}`);
  return number;
}
