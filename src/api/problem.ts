import { STATUS_CODES } from 'node:http';
import type { FastifyError } from 'fastify';
import { UnderstudyError } from '../base/errors.ts';
import { ApiError, type ApiErrorCode } from './api-error.ts';
import type { Problem } from './resources.ts';

/** What a client did wrong is quoted to it, but not at length. */
const PROBLEMS_MAX = 20;
const PROBLEM_CHARACTERS_MAX = 200;

/** Codes of all modules that a caller can do something about. A code that is not here is a fault of the host. */
const CODES_BY_STATUS: Readonly<Record<number, readonly string[]>> = {
  400: ['API_BAD_REQUEST'],
  401: ['API_UNAUTHENTICATED'],
  403: ['API_FORBIDDEN', 'API_ORIGIN_REFUSED', 'HOST_LIMIT', 'HOST_SPEC_REFUSED'],
  404: [
    'API_NOT_FOUND',
    'HOST_NO_SAVED_STATE',
    'HOST_NO_SERIES',
    'HOST_NO_TELEMETRY',
    'HOST_POLICY_UNKNOWN',
    'HOST_TENANT_UNKNOWN',
    'HOST_TOKEN_UNKNOWN',
    'HOST_UNKNOWN',
    'HOST_VM_UNKNOWN',
    'SNAPSHOT_MISSING',
  ],
  405: ['API_METHOD_NOT_ALLOWED'],
  408: ['API_REQUEST_TIMEOUT'],
  409: [
    'API_KEY_BUSY',
    'HOST_TENANT_EXISTS',
    'HOST_TENANT_OWNS_VMS',
    'HOST_VM_ELSEWHERE',
    'HOST_VM_EXISTS',
    'HOST_VM_RUNS',
    'HOST_VM_SUSPENDED',
    'KEEPER_CANNOT_SAVE',
    'KEEPER_DISKS_ELSEWHERE',
    'KEEPER_DISK_FAILED',
    'KEEPER_HOST_MAINTENANCE',
    'KEEPER_HOST_NO_ROOM',
    'KEEPER_IS_SHADOW',
    'KEEPER_LOST',
    'KEEPER_NAME_TAKEN',
    'KEEPER_NO_CONSOLE',
    'KEEPER_NOT_PROTECTED',
    'KEEPER_NOT_RUNNING',
    'KEEPER_PEER_LOST',
    'KEEPER_PEER_REFUSED',
    'KEEPER_PROMOTE_FAILED',
    'KEEPER_SAVE_FAILED',
    'KEEPER_SNAPSHOT_UNDER_WAY',
    'KEEPER_STATE_OUTLIVED',
    'KEEPER_STOPPING',
    'KEEPER_SUPERSEDED',
    'KEEPER_SUSPENDED_ELSEWHERE',
    'KEEPER_TEST_REFUSED',
    'KEEPER_TEST_UNDER_WAY',
    'REPLICATION_NOTHING_COMMITTED',
  ],
  412: ['HOST_POLICY_CHANGED', 'HOST_VM_CHANGED'],
  413: ['API_BODY_TOO_LARGE'],
  415: ['API_MEDIA_TYPE'],
  422: [
    'API_KEY_REUSED',
    'CONFIG_FILE_MISSING',
    'CONFIG_INVALID',
    'CONFIG_NOT_FOUND',
    'CONFIG_UNPROTECTABLE',
    'HOST_NAME_FIXED',
    'KEEPER_HOST_REFUSED',
    'KEEPER_HOST_UNKNOWN',
    'QEMU_ARGUMENT_REFUSED',
    'QEMU_UNPROTECTABLE',
    'QEMU_USER_UNKNOWN',
    'SNAPSHOT_KEY_REFUSED',
    'SNAPSHOT_STORE_REFUSED',
  ],
  426: ['API_UPGRADE_REQUIRED'],
  428: ['API_PRECONDITION_REQUIRED'],
  429: ['API_TOO_MANY_FAILURES'],
  431: ['API_HEADERS_TOO_LARGE'],
  503: [
    'API_CONSOLES_MAX',
    'API_STREAMS_MAX',
    'KEEPER_END_UNRECORDED',
    'KEEPER_MIGRATE_TIMEOUT',
    'KEEPER_NO_ANSWER',
    'LEASE_STORE_AWAY',
    'MEMORY_NO_ROOM',
    'SNAPSHOT_NO_ROOM',
  ],
};

const STATUS_OF: ReadonlyMap<string, number> = new Map(
  Object.entries(CODES_BY_STATUS).flatMap(([status, codes]) => codes.map((code) => [code, Number(status)])),
);

/** What the framework refuses, by the status that it would answer with. */
const CODE_OF_STATUS: Readonly<Record<number, ApiErrorCode>> = {
  413: 'API_BODY_TOO_LARGE',
  415: 'API_MEDIA_TYPE',
};

/** RFC 9457. Of a fault it tells nothing but the code: what went wrong inside is for the log. */
export function problemOf(thrown: unknown): Problem {
  const known = thrown instanceof UnderstudyError ? thrown : refusalOf(thrown);
  const status = STATUS_OF.get(known?.code ?? '') ?? 500;
  if (known === undefined || status === 500) return faultProblem(known?.code ?? 'API_INTERNAL');
  const { problems } = known.facts;
  return {
    ...problemHead(status),
    detail: known.message,
    code: known.code,
    ...(known.hint !== undefined && { hint: known.hint }),
    ...(Array.isArray(problems) && { problems: problems.map(String) }),
  };
}

function faultProblem(code: string): Problem {
  return {
    ...problemHead(500),
    detail: 'The host failed to carry out the request.',
    code,
    hint: "The host's log has the cause; search it for the X-Request-Id of this answer.",
  };
}

function problemHead(status: number): Pick<Problem, 'type' | 'title' | 'status'> {
  return { type: 'about:blank', title: STATUS_CODES[status] ?? 'Error', status };
}

/** A refusal by the framework, told as ours; undefined when it is none. */
function refusalOf(thrown: unknown): ApiError | undefined {
  if (!(thrown instanceof Error)) return undefined;
  const { validation, validationContext = 'request', statusCode = 500 } = thrown as FastifyError;
  if (validation !== undefined) return misfit(validationContext, validation);
  if (statusCode < 400 || statusCode > 499) return undefined;
  return new ApiError(CODE_OF_STATUS[statusCode] ?? 'API_BAD_REQUEST', shortened(thrown.message));
}

function misfit(part: string, issues: NonNullable<FastifyError['validation']>): ApiError {
  if (part === 'headers' && issues.some(isMissingIfMatch)) {
    return new ApiError(
      'API_PRECONDITION_REQUIRED',
      'If-Match has to name the version that is to be changed',
      {
        hint: 'Get the VM, then send its ETag as If-Match: the change is refused when somebody else was faster.',
      },
    );
  }
  const problems = issues
    .slice(0, PROBLEMS_MAX)
    .map(({ instancePath, message }) => shortened(`${part}${instancePath}: ${message ?? 'does not fit'}`));
  return new ApiError('API_BAD_REQUEST', `the request does not fit: ${problems[0]}`, {
    hint: '/openapi.json describes every request.',
    facts: { problems },
  });
}

function isMissingIfMatch({ instancePath, keyword }: { instancePath: string; keyword: string }): boolean {
  return instancePath === '/if-match' && keyword === 'invalid_type';
}

function shortened(text: string): string {
  return text.length > PROBLEM_CHARACTERS_MAX ? `${text.slice(0, PROBLEM_CHARACTERS_MAX)}…` : text;
}
