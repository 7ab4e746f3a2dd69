// An OpenID provider for tests, on loopback: PORT on the command line, and what it is to do as JSON on standard input.
//
//   {"format": "jwt" | "opaque", "redirect_uris": [...], "secret": "...", "life_s": 600, "keys": {"keys": [...]}}
//
// Its people log in with any password. Each is what `people` says, in access tokens too.
import { readFileSync } from 'node:fs';
import Provider from 'oidc-provider';

const port = Number(process.argv[2]);
const { format, redirect_uris: redirects, secret, life_s: lifeS, keys } = JSON.parse(readFileSync(0, 'utf8'));
const people = {
  alice: { email: 'alice@anl.gov', email_verified: true, groups: ['first-users', 'physics'], projects: ['fusion'] },
  bob: { email: 'bob@example.org', email_verified: false, groups: ['first-users'], projects: [] },
  eve: { email: 'eve@example.org', email_verified: true, groups: [], projects: [] },
};
const DEVICE = 'urn:ietf:params:oauth:grant-type:device_code';
const scope = 'openid email groups offline_access';
const resourceServer = {
  scope, audience: 'first', accessTokenFormat: format, accessTokenTTL: lifeS, jwt: { sign: { alg: 'RS256' } },
};

const provider = new Provider(`http://127.0.0.1:${port}`, {
  jwks: keys,
  clients: [
    {
      client_id: 'first-cli', token_endpoint_auth_method: 'none', application_type: 'native',
      redirect_uris: ['http://127.0.0.1/callback'], response_types: ['code'],
      grant_types: ['authorization_code', 'refresh_token', DEVICE],
    },
    {
      client_id: 'first-gateway', client_secret: secret, application_type: 'web', redirect_uris: redirects,
      response_types: ['code'], grant_types: ['authorization_code'],
    },
    {
      client_id: 'somebody-else', client_secret: secret, redirect_uris: [], response_types: [],
      grant_types: ['client_credentials'],
    },
  ],
  scopes: scope.split(' '),
  claims: { openid: ['sub'], email: ['email', 'email_verified'], groups: ['groups'] },
  findAccount: (_, id) => people[id] && { accountId: id, claims: () => ({ sub: id, ...people[id] }) },
  extraTokenClaims: (_, token) => people[token.accountId] ?? {},
  features: {
    deviceFlow: { enabled: true },
    introspection: { enabled: true, allowedPolicy: () => true },
    revocation: { enabled: true },
    clientCredentials: { enabled: true },
    devInteractions: { enabled: true },
    resourceIndicators: {
      enabled: true,
      defaultResource: (context) => (context.oidc.client.clientId === 'somebody-else' ? 'urn:other' : 'urn:first'),
      useGrantedResource: () => true,
      getResourceServerInfo: (_, resource) => (
        resource === 'urn:first' ? resourceServer : { ...resourceServer, audience: 'other' }
      ),
    },
  },
  issueRefreshToken: (_, client, code) => client.grantTypeAllowed('refresh_token') && code.scopes.has('offline_access'),
  pkce: { required: () => true },
  cookies: { keys: ['of a test'] },
  ttl: { AccessToken: lifeS, DeviceCode: 600, Grant: 3600, IdToken: 600, Interaction: 600, Session: 3600 },
});
provider.listen(port, '127.0.0.1', () => console.log('ready'));
