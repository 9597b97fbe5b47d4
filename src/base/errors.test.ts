import { expect, it } from 'vitest';
import { UnderstudyError } from './errors.ts';

class TestError extends UnderstudyError<'TEST_FAILED'> {}

it('an error keeps its code, message and hint whatever its facts are called', () => {
  const facts = { code: 1, message: 'another', hint: 'none', exitCode: 7 };
  const error = new TestError('TEST_FAILED', 'it failed', { hint: 'Try again.', facts });
  expect(JSON.parse(JSON.stringify(error))).toEqual({
    code: 'TEST_FAILED',
    message: 'it failed',
    hint: 'Try again.',
    exitCode: 7,
  });
});
