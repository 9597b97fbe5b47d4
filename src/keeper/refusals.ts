import { KeeperError } from '../control/keeper-error.ts';
import type { Phase } from '../shadow/protection.ts';

export function notProtected(vm: string, phase: Phase): KeeperError {
  return new KeeperError('KEEPER_NOT_PROTECTED', `${vm} has no shadow in sync (${phase})`, {
    hint: 'Wait until `understudy status` says protected, then try again.',
  });
}

export function promoteFailed(vm: string): KeeperError {
  return new KeeperError('KEEPER_PROMOTE_FAILED', `the shadow of ${vm} could not take over`, {
    hint: `\`understudy events ${vm}\` shows why, and what became of the VM.`,
  });
}

export function noConsole(vm: string): KeeperError {
  return new KeeperError('KEEPER_NO_CONSOLE', `${vm} has no serial console`, {
    hint: 'Set console: true in its specification and start it again.',
  });
}
