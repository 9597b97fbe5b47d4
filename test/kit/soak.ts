/** `npm run soak`: the fault loops run long. `npm test` runs a short form of the same loops. */
export const soaking = process.env.UNDERSTUDY_SOAK === '1';
