import type { TestAuthority } from '../../src/api/access-fixture.ts';
import type { TlsCredentials } from '../../src/api/host-address.ts';
import { ROLES, type Role } from '../../src/api/principal.ts';
import { type AbuseWorld, NOBODY, OWNERS, type Owner } from './abuse-world.ts';

/** Somebody who asks. */
export interface Actor {
  readonly name: string;
  readonly credentials: TlsCredentials;
  readonly headers?: Readonly<Record<string, string>>;
  /** Undefined: nobody that the host knows. */
  readonly known: { readonly role: Role; readonly tenant: Owner } | undefined;
}

interface CastOptions {
  readonly authority: TestAuthority;
  /** Another one, which the host does not know. */
  readonly foreign: TestAuthority;
  /** Also those that only differ in how they show who they are. */
  readonly isWhole: boolean;
}

/** A tenant of a certificate, which carries its id as well. */
function ofTenant(world: AbuseWorld, name: string) {
  return { organization: name, uris: [`urn:uuid:${world.tenantId(name)}`] };
}

/** Every sort of principal, and of those who are none. */
export async function makeCast(
  world: AbuseWorld,
  { authority, foreign, isWhole }: CastOptions,
): Promise<Actor[]> {
  const revoked = world.addToken({ role: 'admin', tenant: null });
  const everybody = OWNERS.flatMap((tenant) => ROLES.map((role) => ({ role, tenant })));
  const holders = everybody.map((known) => ({
    name: `token of ${known.tenant ?? 'host'} ${known.role}`,
    credentials: { token: world.addToken(known) },
    known,
  }));
  const shownByCertificate = isWhole ? everybody : everybody.filter((_, index) => index % 4 === 0);
  const certified = shownByCertificate.map(async (known) => {
    const { role, tenant } = known;
    const subject = { name: `cert-${role}`, unit: role, ...(tenant !== null && ofTenant(world, tenant)) };
    return {
      name: `certificate of ${tenant ?? 'host'} ${role}`,
      credentials: await authority.client(subject),
      known,
    };
  });
  const stranger = (name: string, credentials: TlsCredentials, authorization?: string): Actor => ({
    ...{ name, credentials, known: undefined },
    ...(authorization !== undefined && { headers: { authorization } }),
  });
  const valid = holders[0]?.credentials.token ?? '';
  const malformed = [`Basic ${valid}`, `Bearer ${valid}x`, `Bearer ${valid} ${valid}`];
  if (isWhole) malformed.push('', 'Bearer', 'Bearer ', valid);
  world.forget(revoked);
  return [
    stranger('nobody', {}),
    ...malformed.map((text, index) => stranger(`malformed header ${index}`, {}, text)),
    stranger('unknown token', { token: `us_0123456789ab_${'x'.repeat(43)}` }),
    stranger('revoked token', { token: revoked }),
    stranger('expired token', { token: world.addToken({ role: 'admin', tenant: null, expiresMs: 1 }) }),
    stranger('token of no tenant', { token: world.addToken({ role: 'admin', tenant: NOBODY }) }),
    stranger('certificate of no role', await authority.client({ name: 'ada', unit: 'emperor' })),
    stranger(
      'certificate of no tenant',
      await authority.client({ name: 'ada', unit: 'admin', organization: NOBODY }),
    ),
    stranger('certificate of another CA', await foreign.client({ name: 'ada', unit: 'admin' })),
    ...holders,
    ...(await Promise.all(certified)),
  ];
}
