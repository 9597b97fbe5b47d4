import { keyed, nothing, oneVm, type Route } from './route-parts.ts';
import {
  prunedSchema,
  pruneSnapshotsSchema,
  snapshotIdSchema,
  snapshotListSchema,
  snapshotSchema,
  takeSnapshotSchema,
  verdictSchema,
} from './snapshot-resources.ts';

/** Large memories take their time to be written and read. Milliseconds. */
const WHOLE_FILE_DEADLINE_MS = 3_600_000;
const oneSnapshot = oneVm.extend({ id: snapshotIdSchema });

/** Files of the host, and room that no limit of a tenant counts: for those who belong to none. */
export const snapshotRoutes = {
  listSnapshots: {
    role: 'viewer',
    hostOnly: true,
    method: 'GET',
    path: '/v1/vms/{name}/snapshots',
    summary: 'Snapshot files of a VM, newest first, where its specification says or where they usually are.',
    params: oneVm,
    status: 200,
    answer: snapshotListSchema,
  },
  createSnapshot: {
    role: 'operator',
    hostOnly: true,
    method: 'POST',
    path: '/v1/vms/{name}/snapshots',
    summary:
      'Write a snapshot of a VM from its shadow, encrypted if its specification names a key. Answers when it is on disk.',
    params: oneVm,
    headers: keyed,
    body: takeSnapshotSchema.nullish().transform((said) => said ?? takeSnapshotSchema.parse({})),
    status: 201,
    answer: snapshotSchema,
    deadlineMs: WHOLE_FILE_DEADLINE_MS,
  },
  verifySnapshot: {
    role: 'operator',
    hostOnly: true,
    method: 'POST',
    path: '/v1/vms/{name}/snapshots/{id}/verify',
    summary: 'Read every byte of a snapshot. One that is damaged is an answer too.',
    params: oneSnapshot,
    status: 200,
    answer: verdictSchema,
    deadlineMs: WHOLE_FILE_DEADLINE_MS,
  },
  deleteSnapshot: {
    role: 'operator',
    hostOnly: true,
    method: 'DELETE',
    path: '/v1/vms/{name}/snapshots/{id}',
    summary: 'Remove a snapshot, also the last one.',
    params: oneSnapshot,
    status: 204,
    answer: nothing,
  },
  pruneSnapshots: {
    role: 'operator',
    hostOnly: true,
    method: 'POST',
    path: '/v1/vms/{name}/prune-snapshots',
    summary:
      'Remove snapshots that are too many or too old; never the last one that the VM could go on from.',
    params: oneVm,
    headers: keyed,
    body: pruneSnapshotsSchema,
    status: 200,
    answer: prunedSchema,
    deadlineMs: WHOLE_FILE_DEADLINE_MS,
  },
} as const satisfies Record<string, Route>;
