// A certified OpenID provider as a test issuer: opaque and at+jwt access tokens for one backend client. Test credentials only.
import { generateKeyPairSync } from 'node:crypto';
import { createServer } from 'node:http';
import Provider from 'oidc-provider';

const audience = process.argv[2];
const server = createServer();
server.listen(0, '127.0.0.1', () => {
  const issuer = `http://127.0.0.1:${server.address().port}`;
  const { privateKey } = generateKeyPairSync('ec', { namedCurve: 'P-256' });
  const key = { ...privateKey.export({ format: 'jwk' }), use: 'sig', alg: 'ES256', kid: 'one' };
  const scopes = ['system/*.rs', 'system/*.cruds'];
  const client = (id) => ({
    client_id: id, client_secret: 'test-only', grant_types: ['client_credentials'], redirect_uris: [], response_types: [],
    scope: scopes.join(' '), token_endpoint_auth_method: 'client_secret_basic', id_token_signed_response_alg: 'ES256',
  });
  const provider = new Provider(issuer, {
    clients: [client('backend'), client('shield')],
    jwks: { keys: [key] },
    scopes,
    features: {
      devInteractions: { enabled: false },
      clientCredentials: { enabled: true },
      introspection: { enabled: true, allowedPolicy: () => true },
      revocation: { enabled: true },
      resourceIndicators: {
        enabled: true,
        getResourceServerInfo: (ctx, resource) => ({
          scope: scopes.join(' '), audience, accessTokenTTL: 300,
          accessTokenFormat: resource.endsWith('opaque') ? 'opaque' : 'jwt', jwt: { sign: { alg: 'ES256' } },
        }),
      },
    },
  });
  server.on('request', provider.callback());
  console.log(JSON.stringify({ pid: process.pid, issuer }));
});
process.on('SIGTERM', () => process.exit(0));
