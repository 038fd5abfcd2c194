-- The post box of a fleet: orders to the hosts, and what they report. `gpu-oncall fleet init` runs this as an administrator.
-- A host's role sees and changes its own rows only (row-level security), and nothing outside this schema.
-- The hosts know their name from `fleet.me()`, which reads the role of the session: SET ROLE does not change it.

DO $$ BEGIN
  IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'oncall_worker') THEN
    CREATE ROLE oncall_worker NOLOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS;
  END IF;
  IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'oncall_bot') THEN
    CREATE ROLE oncall_bot LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS;
  END IF;
END $$;

DO $$ BEGIN
  EXECUTE format('REVOKE ALL ON DATABASE %I FROM PUBLIC', current_database());
  EXECUTE format('GRANT CONNECT ON DATABASE %I TO oncall_worker', current_database());
  EXECUTE format('GRANT CONNECT, CREATE, TEMPORARY ON DATABASE %I TO oncall_bot', current_database());
END $$;
REVOKE ALL ON SCHEMA public FROM PUBLIC;
GRANT USAGE, CREATE ON SCHEMA public TO oncall_bot;

CREATE SCHEMA IF NOT EXISTS fleet;
REVOKE ALL ON SCHEMA fleet FROM PUBLIC;
GRANT USAGE ON SCHEMA fleet TO oncall_worker, oncall_bot;

CREATE TABLE IF NOT EXISTS fleet.hosts (
  name text PRIMARY KEY CHECK (name ~ '^[a-z0-9][a-z0-9_-]{0,39}$'),
  role name NOT NULL UNIQUE,
  labels jsonb NOT NULL DEFAULT '{}',
  enrolled_at timestamptz NOT NULL DEFAULT now(),
  revoked_at timestamptz
);

CREATE TABLE IF NOT EXISTS fleet.signs (  -- signs of life, one row a host
  host text PRIMARY KEY REFERENCES fleet.hosts,
  at timestamptz NOT NULL DEFAULT now(),
  body jsonb NOT NULL CHECK (pg_column_size(body) < 65536)
);

CREATE TABLE IF NOT EXISTS fleet.orders (
  id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  host text NOT NULL REFERENCES fleet.hosts,
  envelope text NOT NULL,
  signature text NOT NULL,
  created_at timestamptz NOT NULL DEFAULT now(),
  taken_at timestamptz,
  answer jsonb CHECK (pg_column_size(answer) < 4194304),
  answered_at timestamptz
);
CREATE INDEX IF NOT EXISTS orders_of_a_host ON fleet.orders (host, id) WHERE answered_at IS NULL;

CREATE SEQUENCE IF NOT EXISTS fleet.report_seq;
CREATE TABLE IF NOT EXISTS fleet.reports (  -- the newest state of each thing that a host reports; the bot removes what it has read
  host text NOT NULL REFERENCES fleet.hosts,
  kind text NOT NULL CHECK (kind IN ('run', 'file', 'alert')),
  key text NOT NULL CHECK (length(key) < 400),
  seq bigint NOT NULL DEFAULT nextval('fleet.report_seq'),
  body jsonb NOT NULL CHECK (pg_column_size(body) < 8388608),
  content bytea CHECK (octet_length(content) <= 33554432),
  PRIMARY KEY (host, kind, key)
);
CREATE INDEX IF NOT EXISTS reports_in_order ON fleet.reports (seq);

CREATE OR REPLACE FUNCTION fleet.me() RETURNS text
  LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
  AS $$ SELECT name FROM fleet.hosts WHERE role = session_user AND revoked_at IS NULL $$;

CREATE OR REPLACE FUNCTION fleet.ring() RETURNS trigger
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
  AS $$ BEGIN
    IF TG_TABLE_NAME = 'orders' AND TG_OP = 'INSERT' THEN
      PERFORM pg_notify('oncall_host_' || NEW.host, '');
    ELSE
      PERFORM pg_notify('oncall_bot', '');
    END IF;
    RETURN NULL;
  END $$;

REVOKE ALL ON FUNCTION fleet.me(), fleet.ring() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION fleet.me() TO oncall_worker, oncall_bot;

CREATE OR REPLACE TRIGGER ring_orders AFTER INSERT OR UPDATE OF answered_at ON fleet.orders
  FOR EACH ROW EXECUTE FUNCTION fleet.ring();
CREATE OR REPLACE TRIGGER ring_reports AFTER INSERT OR UPDATE ON fleet.reports
  FOR EACH ROW EXECUTE FUNCTION fleet.ring();

GRANT SELECT ON fleet.hosts TO oncall_worker;
GRANT SELECT, INSERT (host, at, body), UPDATE (at, body) ON fleet.signs TO oncall_worker;
GRANT SELECT, UPDATE (taken_at, answer, answered_at) ON fleet.orders TO oncall_worker;
GRANT SELECT, INSERT (host, kind, key, body, content), UPDATE (seq, body, content) ON fleet.reports TO oncall_worker;
GRANT USAGE ON SEQUENCE fleet.report_seq TO oncall_worker, oncall_bot;
GRANT SELECT ON fleet.hosts TO oncall_bot;
GRANT SELECT, DELETE ON fleet.signs TO oncall_bot;
GRANT SELECT, INSERT (host, envelope, signature), UPDATE (answer, answered_at), DELETE ON fleet.orders TO oncall_bot;
GRANT SELECT, DELETE ON fleet.reports TO oncall_bot;

ALTER TABLE fleet.hosts ENABLE ROW LEVEL SECURITY;
ALTER TABLE fleet.signs ENABLE ROW LEVEL SECURITY;
ALTER TABLE fleet.orders ENABLE ROW LEVEL SECURITY;
ALTER TABLE fleet.reports ENABLE ROW LEVEL SECURITY;

DO $$ DECLARE one text; BEGIN
  FOREACH one IN ARRAY ARRAY['hosts', 'signs', 'orders', 'reports'] LOOP
    EXECUTE format('DROP POLICY IF EXISTS of_the_bot ON fleet.%I', one);
    EXECUTE format('CREATE POLICY of_the_bot ON fleet.%I TO oncall_bot USING (true) WITH CHECK (true)', one);
    EXECUTE format('DROP POLICY IF EXISTS of_its_host ON fleet.%I', one);
    EXECUTE format(
      'CREATE POLICY of_its_host ON fleet.%1$I TO oncall_worker USING (%2$I = fleet.me()) WITH CHECK (%2$I = fleet.me())',
      one, CASE one WHEN 'hosts' THEN 'name' ELSE 'host' END);
  END LOOP;
END $$;
