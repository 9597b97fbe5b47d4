import { z } from 'zod';
import { isTrace } from '../base/trace.ts';

/** What a host wants of a keeper beside the specification. */
export const keeperWishesSchema = z.object({
  /** Whether a shadow is wanted, whatever the specification says. */
  shadowWanted: z.boolean().optional(),
  /** A host's directory, in which the state of its VMs is saved. */
  stateDirectory: z.string().optional(),
  /** Where the VM begins; by default where it was suspended, or by booting. */
  startFrom: z.literal('snapshot').optional(),
  /** A snapshot file that it goes on from, and the file with its key. */
  restore: z.string().optional(),
  keyFile: z.string().optional(),
  /** Its tokens begin above this number. */
  tokenAbove: z.int().nonnegative().optional(),
  /** Where it leaves how it ended; by default nowhere. */
  endPath: z.string().optional(),
  /** Below these alone may the files of its specification lie, whenever a QEMU opens them; left out: anywhere. */
  directories: z.array(z.string()).optional(),
  /** How many CPUs' time its acting QEMU may use, if the kernel lets us say so; by default as much as there is. */
  cpuShareMax: z.number().positive().optional(),
  /** A VM of several hosts begins anew though it is on record that its shadow may take over. */
  anew: z.boolean().optional(),
  /** The request that it is started for, for its log. */
  trace: z.string().refine(isTrace).optional(),
});

export type KeeperWishes = z.output<typeof keeperWishesSchema>;

/** The words of a keeper's command line that carry them, as `util.parseArgs` takes them apart. */
export const WISH_OPTIONS = {
  shadow: { type: 'string' },
  state: { type: 'string' },
  from: { type: 'string' },
  restore: { type: 'string' },
  'key-file': { type: 'string' },
  'token-above': { type: 'string' },
  end: { type: 'string' },
  directories: { type: 'string' },
  'cpu-share-max': { type: 'string' },
  anew: { type: 'string' },
  trace: { type: 'string' },
} as const;

export function wordsOf(wishes: KeeperWishes): string[] {
  const { shadowWanted, stateDirectory, startFrom, restore, keyFile, tokenAbove, endPath, trace } = wishes;
  const { directories, cpuShareMax, anew } = wishes;
  const said = {
    shadow: shadowWanted === undefined ? undefined : shadowWanted ? 'on' : 'off',
    state: stateDirectory,
    from: startFrom,
    restore,
    'key-file': keyFile,
    'token-above': tokenAbove?.toString(),
    end: endPath,
    directories: directories && JSON.stringify(directories),
    'cpu-share-max': cpuShareMax?.toString(),
    anew: anew ? 'yes' : undefined,
    trace,
  } satisfies { [Word in keyof typeof WISH_OPTIONS]: string | undefined };
  return Object.entries(said).flatMap(([word, value]) => (value === undefined ? [] : [`--${word}`, value]));
}

/** @throws ZodError, SyntaxError for words that mean nothing */
export function wishesFrom(values: { readonly [Word in keyof typeof WISH_OPTIONS]?: string }): KeeperWishes {
  const { shadow, state, from, restore, 'key-file': keyFile, 'token-above': tokenAbove, end, trace } = values;
  const { directories, 'cpu-share-max': cpuShareMax, anew } = values;
  return keeperWishesSchema.parse({
    shadowWanted: shadow === undefined ? undefined : shadow === 'on',
    stateDirectory: state,
    startFrom: from,
    restore,
    keyFile,
    tokenAbove: tokenAbove === undefined ? undefined : Number(tokenAbove),
    endPath: end,
    directories: directories === undefined ? undefined : JSON.parse(directories),
    cpuShareMax: cpuShareMax === undefined ? undefined : Number(cpuShareMax),
    anew: anew === undefined ? undefined : anew === 'yes',
    // An id that is none is no reason not to keep a VM.
    trace: isTrace(trace) ? trace : undefined,
  });
}
