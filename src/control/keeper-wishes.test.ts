import { parseArgs } from 'node:util';
import { expect, it } from 'vitest';
import { type KeeperWishes, WISH_OPTIONS, wishesFrom, wordsOf } from './keeper-wishes.ts';

it.each<[string, KeeperWishes]>([
  ['none', {}],
  [
    'all there are',
    {
      ...{
        shadowWanted: false,
        stateDirectory: '/state',
        startFrom: 'snapshot',
        tokenAbove: 7,
        endPath: '/e',
      },
      ...{ directories: ['/srv/a b', '/srv/"c"'], cpuShareMax: 1.5, trace: 'call-1' },
    },
  ],
  ['no directory at all, which is not the same as any', { directories: [] }],
])('wishes for a keeper come out of its command line as they went in: %s', (_, wishes) => {
  const { values } = parseArgs({ args: wordsOf(wishes), options: WISH_OPTIONS });
  expect(JSON.parse(JSON.stringify(wishesFrom(values)))).toEqual(wishes);
});
