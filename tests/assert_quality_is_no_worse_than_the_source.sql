-- Rows: conventions and plausible values that the synthetic tables keep worse than the
-- source does. A warning: a model may have learnt too little, and the tables are whole.
{{ config(group='decode', severity='warn') }}
select * from {{ ref('quality_report') }}
where verdict = 'failed' and severity <> 'fatal'
