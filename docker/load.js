// The load of docker compose --profile load: one id a request, RATE of them a second, whatever the answers take.
import http from 'k6/http';

const rate = Number(__ENV.RATE);

export const options = {
  discardResponseBodies: true,
  scenarios: {
    ids: {
      executor: 'constant-arrival-rate',
      rate,
      timeUnit: '1s',
      // Then it begins again, because Compose restarts it.
      duration: '24h',
      preAllocatedVUs: 50,
      maxVUs: 500,
    },
  },
};

// Ids are drawn from as many as a minute has requests. So of the requests of a window some 63 % are
// different (1 - 1/e), the rest repeats.
export default function () {
  const id = Math.floor(Math.random() * rate * 60);
  // The name is what its metrics go by; otherwise that is the URL, and there would be one for every id.
  const tags = { name: 'accept' };
  const answer = http.get(`${__ENV.TARGET}/api/verve/accept?id=${id}`, { tags });
  if (answer.status !== 200) {
    console.error(`${answer.status} ${answer.headers['Failure-Reason'] || answer.error}`);
  }
}
