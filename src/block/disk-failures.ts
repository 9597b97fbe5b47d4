import { messageOf } from '../base/errors.ts';
import { BlockError } from './block-error.ts';

/** Of the side where the VM acts. */
export function diskFailed(cause: unknown): BlockError {
  return new BlockError('BLOCK_DISK_FAILED', `a disk cannot be written any more: ${messageOf(cause)}`, {
    hint: 'Free space or mend the disk of this host. The other side has all that was committed.',
    cause,
  });
}

/** Of the same side. The guest is told, unless it goes on elsewhere. */
export function diskUnreadable(cause: unknown): BlockError {
  return new BlockError('BLOCK_DISK_FAILED', `a disk cannot be read: ${messageOf(cause)}`, {
    hint: 'Mend the disk of this host. The other side has all that was committed.',
    cause,
  });
}

/** Of the side of the shadow. */
export function copyFailed(cause: unknown): BlockError {
  const message = `the copy of a disk cannot be written any more: ${messageOf(cause)}`;
  return new BlockError('BLOCK_DISK_FAILED', message, {
    hint: 'Free space or mend the disk of the host of the shadow. The VM has its own.',
    cause,
  });
}

export function diskClosed(): BlockError {
  return new BlockError('BLOCK_DISK_CLOSED', 'the disk is closed', {
    hint: 'Nothing: the VM that it belonged to has ended.',
  });
}
