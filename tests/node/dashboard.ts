// A strict version of Grafana's own types for a dashboard in JSON.
//
// In Grafana's types a panel's options are any record, because they depend on the panel's type; here each type of panel that
// the dashboards have comes with its own. JSON has no enums, so their members are written as their values.

import type { AnnotationQuery, Dashboard, DataQuery, FieldConfig, Panel, RowPanel } from '@grafana/schema';
import type * as Heatmap from '@grafana/schema/dist/esm/raw/composable/heatmap/panelcfg/x/HeatmapPanelCfg_types.gen';
import type * as Stat from '@grafana/schema/dist/esm/raw/composable/stat/panelcfg/x/StatPanelCfg_types.gen';
import type * as StateTimeline from '@grafana/schema/dist/esm/raw/composable/statetimeline/panelcfg/x/StateTimelinePanelCfg_types.gen';
import type * as Table from '@grafana/schema/dist/esm/raw/composable/table/panelcfg/x/TablePanelCfg_types.gen';
import type * as Text from '@grafana/schema/dist/esm/raw/composable/text/panelcfg/x/TextPanelCfg_types.gen';
import type * as TimeSeries from '@grafana/schema/dist/esm/raw/composable/timeseries/panelcfg/x/TimeSeriesPanelCfg_types.gen';

/** As it is written in JSON: enums by their values. */
type Json<T> = T extends string
  ? `${T}`
  : T extends number | boolean | null | undefined
    ? T
    : T extends Array<infer Item>
      ? Array<Json<Item>>
      : T extends object
        ? { [Key in keyof T]: Json<T[Key]> }
        : T;

/** A query of the Prometheus data source, whose types are not part of the schema. */
interface Query extends DataQuery {
  expr: string;
  legendFormat?: string;
  format?: 'time_series' | 'table' | 'heatmap';
  instant?: boolean;
  range?: boolean;
  interval?: string;
  editorMode?: 'code' | 'builder';
}

/** An override of what the field configuration has, under the same name. */
type Override<Fields, Custom> =
  | { [Key in keyof Fields & string]-?: { id: Key; value: Fields[Key] } }[keyof Fields & string]
  | { [Key in keyof Custom & string]-?: { id: `custom.${Key}`; value: Custom[Key] } }[keyof Custom & string];

type Fields = Omit<FieldConfig, 'custom'>;

interface PanelOf<Type extends string, Options, Custom>
  extends Omit<Panel, 'type' | 'options' | 'fieldConfig' | 'targets'> {
  type: Type;
  title: string;
  description: string;
  pluginVersion: '12.4.0';
  options: Options;
  fieldConfig: {
    defaults: Fields & { custom?: Custom };
    overrides: Array<{
      matcher: { id: 'byName' | 'byRegexp' | 'byFrameRefID'; options: string };
      properties: Array<Override<Fields, Custom>>;
    }>;
  };
  targets: Query[];
}

interface TextPanel extends Omit<Panel, 'type' | 'options' | 'fieldConfig' | 'targets'> {
  type: 'text';
  title: string;
  description: string;
  pluginVersion: '12.4.0';
  options: Text.Options;
}

interface Row extends RowPanel {
  panels: [];
}

/** What the Prometheus data source makes of an annotation is not part of the schema either. */
interface Annotation extends AnnotationQuery<Query> {
  titleFormat?: string;
  textFormat?: string;
  tagKeys?: string;
}

interface Checked extends Omit<Dashboard, 'panels' | 'annotations'> {
  uid: string;
  title: string;
  schemaVersion: 42;
  annotations: { list: Annotation[] };
  panels: Array<
    | Row
    | TextPanel
    | PanelOf<'heatmap', Heatmap.Options, Heatmap.FieldConfig>
    | PanelOf<'stat', Stat.Options, Record<never, never>>
    | PanelOf<'state-timeline', StateTimeline.Options, StateTimeline.FieldConfig>
    | PanelOf<'table', Table.Options, Table.FieldConfig>
    | PanelOf<'timeseries', TimeSeries.Options, TimeSeries.FieldConfig>
  >;
}

export type CheckedDashboard = Json<Checked>;
